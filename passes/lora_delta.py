"""What adapters add to a weight, computed a few rows at a time in float32.

Papers: Hu et al., "LoRA", 2021; Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024; Hyeon-Woo et al.,
"FedPara" (LoHa), 2021; Yeh et al., "LyCORIS" (LoKr), 2023. Formulas and their order of operations are those of
huggingface/peft 0.21, whose `merge_and_unload` is equalled bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compressor.shards import row_parts

ELEMENTS_AT_ONCE = 1 << 17  # of a weight in float32: parts that stay in the cache
# peft multiplies whole matrices; the product of three rows or fewer is summed in another order (seen in MKL 2024.2).
FEWEST_ROWS = 32  # of which a part has at least half


@dataclass(frozen=True)
class Delta(ABC):
    """A change of a parameter [out_features, in_features]; `scaling` is what all of it is multiplied by."""

    scaling: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the parameter that it is added to."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of it, float32 [stop - start, in_features], in memory of their own."""

    def times(self, weight: float) -> Delta:
        """It times a number."""
        return replace(self, scaling=self.scaling * weight)


@dataclass(frozen=True)
class LowRank(Delta):
    """(B A) * scaling, of B [out_features, rank] and A [rank, in_features]."""

    b: torch.Tensor
    a: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.b), self.a.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return (self.b[start:stop] @ self.a).mul_(self.scaling)


@dataclass(frozen=True)
class LowRankTable(LowRank):
    """(B A)ᵀ * scaling, of a table [vocab_size, hidden_size]: B [hidden_size, rank], A [rank, vocab_size]."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape[1], len(self.b)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return (self.b @ self.a[:, start:stop]).T.mul_(self.scaling)


@dataclass(frozen=True)
class Hadamard(Delta):
    """LoHa: (B1 A1) * (B2 A2) * scaling, element by element."""

    b1: torch.Tensor
    a1: torch.Tensor
    b2: torch.Tensor
    a2: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.b1), self.a1.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return (self.b1[start:stop] @ self.a1).mul_(self.b2[start:stop] @ self.a2).mul_(self.scaling)


@dataclass(frozen=True)
class Kronecker(Delta):
    """LoKr: the Kronecker product of W1 and W2, times scaling."""

    w1: torch.Tensor
    w2: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.w1) * len(self.w2), self.w1.shape[1] * self.w2.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        height = len(self.w2)
        first, last = start // height, math.ceil(stop / height)  # rows of W1, each of which makes `height` rows
        made = torch.kron(self.w1[first:last], self.w2).mul_(self.scaling)
        return made[start - first * height : stop - first * height]


@dataclass(frozen=True)
class Shift(Delta):
    """values * scaling, of a bias [out_features]."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.values[start:stop] * self.scaling


def combine(deltas: Sequence[Delta], weights: Sequence[float], combination: str) -> list[Delta]:
    """Several adapters' changes of one weight, each times its weight; what is returned is to be summed.

    LoRAs become one, as peft's `add_weighted_adapter` makes it. `cat`: B side by side, A over each other, which is the
    sum of the products. `linear`: the factors are summed, each times the root of its weight, which adds products of one
    adapter's B with another's A.
    """
    weighted = list(zip(deltas, weights, strict=True))
    low_rank = [(delta, weight) for delta, weight in weighted if isinstance(delta, LowRank)]
    if len(low_rank) < 2:
        return [delta.times(weight) for delta, weight in weighted]
    others = [delta.times(weight) for delta, weight in weighted if not isinstance(delta, LowRank)]
    return [_concatenated(low_rank) if combination == "cat" else _summed(low_rank), *others]


def _concatenated(deltas: Sequence[tuple[LowRank, float]]) -> LowRank:
    a = torch.cat([delta.a * weight * delta.scaling for delta, weight in deltas])
    return replace(deltas[0][0], b=torch.cat([delta.b for delta, _ in deltas], dim=1), a=a, scaling=1.0)


def _summed(deltas: Sequence[tuple[LowRank, float]]) -> LowRank:
    scales = [weight * delta.scaling for delta, weight in deltas]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    a = torch.stack([delta.a * root for (delta, _), root in zip(deltas, signed, strict=True)]).sum(0)
    b = torch.stack([delta.b * root for (delta, _), root in zip(deltas, roots, strict=True)]).sum(0)
    return replace(deltas[0][0], b=b, a=a, scaling=1.0)


@dataclass(frozen=True)
class Change:
    """Everything that is done to one parameter, in this order.

    Attributes:
        replacement: what stands in the base's place, as it is stored there.
        deltas: what is added.
        magnitude: DoRA's length of each row, or of each column of an embedding table.
        by_column: whether magnitudes are those of columns.
        row_indices: rows that are replaced, int64.
        new_rows: what by, float32 [rows, in_features].
    """

    replacement: torch.Tensor | None = None
    deltas: Sequence[Delta] = ()
    magnitude: torch.Tensor | None = None
    by_column: bool = False
    row_indices: torch.Tensor | None = None
    new_rows: torch.Tensor | None = None

    @property
    def takes_rows(self) -> bool:
        """Whether some rows can be changed without the others."""
        return self.magnitude is None or not self.by_column

    def apply(self, stored: torch.Tensor, dtype: torch.dtype, first: int = 0) -> torch.Tensor:
        """The changed rows in `dtype`, rounded once.

        Args:
            stored: rows of the parameter from `first` on, that may be written over.
        """
        weight = stored
        if self.replacement is not None:
            weight = self.replacement[first : first + len(stored)].to(stored.dtype)
        out = stored if stored.dtype == dtype else torch.empty(stored.shape, dtype=dtype)
        lengths = self._column_lengths(weight) if self.magnitude is not None and self.by_column else None
        for start, stop in _parts(weight):
            values = self._added(weight, start, stop, first)
            if self.magnitude is not None and lengths is not None:
                values = (self.magnitude / lengths).unsqueeze(0) * values
            elif self.magnitude is not None:
                wanted = self.magnitude[first + start : first + stop]
                values = (wanted / torch.linalg.norm(values, dim=1)).unsqueeze(1) * values
            out[start:stop] = values
        if self.row_indices is not None and self.new_rows is not None:
            here = (self.row_indices >= first) & (self.row_indices < first + len(stored))
            out[self.row_indices[here] - first] = self.new_rows[here].to(dtype)
        return out

    def _added(self, weight: torch.Tensor, start: int, stop: int, first: int) -> torch.Tensor:
        """Rows of the sum, float32, in memory of their own."""
        if not self.deltas:
            return weight[start:stop].float()
        values = self.deltas[0].rows(first + start, first + stop).add_(weight[start:stop])
        for delta in self.deltas[1:]:
            values.add_(delta.rows(first + start, first + stop))
        return values

    def _column_lengths(self, weight: torch.Tensor) -> torch.Tensor:
        squares = torch.zeros(weight.shape[1], dtype=torch.float64)
        for start, stop in _parts(weight):
            squares += self._added(weight, start, stop, 0).double().square().sum(0)
        return squares.sqrt().float()


def rows_at_once(shape: Sequence[int], elements: int) -> int:
    """The most rows of a parameter that a part of so many elements has."""
    return max(FEWEST_ROWS, elements * shape[0] // math.prod(shape))


def _parts(weight: torch.Tensor) -> list[tuple[int, int]]:
    return row_parts(len(weight), rows_at_once(weight.shape, ELEMENTS_AT_ONCE))
