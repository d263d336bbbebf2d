"""Orthogonal matrices that spread outliers over all channels, as Kronecker products of small factors.

A Hadamard matrix has entries of one magnitude only, so that it spreads a single large channel perfectly evenly; random
signs keep it from lining up with the data. The product is never formed: a vector of n channels meets one factor after
the other, which costs n times the sum of their orders rather than n squared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LARGEST_POWER = 7  # Sylvester factors have at most 2^7 channels: large enough for matrix units, small next to a block


@dataclass(frozen=True, eq=False)
class Rotation:
    """x -> (x * signs) R, where R is block-diagonal with equal orthogonal blocks.

    Attributes:
        signs: float64 [n], each 1 or -1.
        factors: orthogonal float64 matrices whose Kronecker product is the block; its order divides n.
    """

    signs: torch.Tensor
    factors: Sequence[torch.Tensor]

    @classmethod
    def draw(cls, blocks: int, order: int, generator: torch.Generator) -> Rotation:
        """A random rotation of `blocks` times `order` channels; the blocks differ in their signs."""
        factors = orthogonal_factors(order, generator)
        signs = torch.randint(0, 2, (blocks * order,), generator=generator)
        return cls(2.0 * signs.double() - 1, factors)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Rotate vectors [..., n], in float64."""
        order = math.prod(len(factor) for factor in self.factors)
        turned = (vectors.double() * self.signs).reshape(-1, order)
        for factor in reversed(self.factors):
            # The innermost axis is rotated and becomes the outermost: after the last factor all are in place again.
            turned = (turned.view(len(turned), -1, len(factor)) @ factor).transpose(1, 2).flatten(1)
        return turned.view(vectors.shape)

    def repeat_blocks(self, times: int) -> Rotation:
        """The rotation in which every block stands `times` times in a row."""
        order = math.prod(len(factor) for factor in self.factors)
        signs = self.signs.view(-1, 1, order).expand(-1, times, order)
        return Rotation(signs.flatten(), self.factors)


def orthogonal_factors(order: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Factors, float64, of an orthogonal matrix: a Hadamard matrix where a construction below knows the order.

    Where it does not, the odd part of the order is a random orthogonal factor and the powers of two stay Hadamard.
    """
    odd = order // _power_of_two(order)
    candidates = (odd << shift for shift in range(_power_of_two(order).bit_length()))
    core = next((matrix for matrix in map(_core, candidates) if matrix is not None), None)
    first = random_orthogonal(odd, generator) if core is None else core / math.sqrt(len(core))
    exponent = (order // len(first)).bit_length() - 1
    factors = [sylvester(part) / 2 ** (part / 2) for part in _split(exponent)]
    return factors if factors and len(first) == 1 else [*factors, first]


def sylvester(exponent: int) -> torch.Tensor:
    """The Hadamard matrix of order 2^exponent, entries 1 and -1."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(exponent):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def paley(order: int) -> torch.Tensor | None:
    """A Hadamard matrix, entries 1 and -1, from the squares modulo a prime; None where the order has no such prime.

    Orders are q + 1 for a prime q = 3 modulo 4, and 2(q + 1) for a prime q = 1 modulo 4.
    Paper: Paley, "On Orthogonal Matrices", 1933.
    """
    if order % 4 == 0 and _is_prime(order - 1):
        skew = _bordered(order - 1, -1.0)
        return skew + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if order % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_bordered(half - 1, 1.0), plus) + torch.kron(torch.eye(half, dtype=torch.float64), minus)
    return None


def random_orthogonal(order: int, generator: torch.Generator) -> torch.Tensor:
    """An orthogonal matrix, float64, uniform over all of them."""
    gaussian = torch.randn(order, order, dtype=torch.float64, generator=generator)
    basis, triangle = torch.linalg.qr(gaussian)
    return (basis * triangle.diagonal().sign()).contiguous()


def _core(order: int) -> torch.Tensor | None:
    return sylvester(0) if order == 1 else paley(order)


def _bordered(prime: int, left: float) -> torch.Tensor:
    """The quadratic characters of i - j modulo the prime, bordered by ones above and `left` on the left."""
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[torch.arange(prime).square() % prime] = 1
    character[0] = 0
    index = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1, left
    matrix[1:, 1:] = character[(index.unsqueeze(1) - index) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _power_of_two(number: int) -> int:
    """The largest power of two that divides the number."""
    return number & -number


def _split(exponent: int) -> list[int]:
    """The exponent as a sum of nearly equal parts of at most LARGEST_POWER; none where it is zero."""
    parts = math.ceil(exponent / LARGEST_POWER)
    return [exponent * (part + 1) // parts - exponent * part // parts for part in range(parts)]
