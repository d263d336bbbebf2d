"""A linear of low rank: what it reads goes down to a few features, and up from these to what it writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """Two factors in the place of a matrix, or beside one.

    Attributes:
        down: [rank, in_features], in the dtype that it is stored in.
        up: [out_features, rank], in the same.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that they stand for."""
        return len(self.up), self.down.shape[1]

    @property
    def storage_bits(self) -> int:
        return 8 * (self.down.nbytes + self.up.nbytes)

    def dequantize(self) -> torch.Tensor:
        """The matrix that they stand for, float32 [out_features, in_features]."""
        return self.up.float() @ self.down.float()

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same factors, each rounded to `dtype`."""
        return LowRank(self.down.to(dtype), self.up.to(dtype))

    def split_rows(self, rows: list[int]) -> list[LowRank]:
        """Factors of so many output features each."""
        return [LowRank(self.down, up) for up in self.up.split(rows)]


def same_factors(one: LowRank | None, other: LowRank | None) -> bool:
    """Whether factors are equal bit for bit, dtype included."""
    if one is None or other is None:
        return one is other
    pairs = ((one.down, other.down), (one.up, other.up))
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b)) for a, b in pairs)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
