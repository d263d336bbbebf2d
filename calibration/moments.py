"""Second moments of what a linear reads, as small as they can be held."""

from __future__ import annotations

from collections.abc import Iterator

import torch

FEATURES_AT_ONCE = 256  # rows of a product of inputs that are computed and averaged at once


class SecondMoments:
    """A running mean of x xᵀ. It is symmetric: strips of it, from the diagonal to the right, are all that is held."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._strips = [torch.zeros(rows.stop - rows.start, width - rows.start) for rows in parts(width)]

    @classmethod
    def of(cls, matrix: torch.Tensor) -> SecondMoments:
        """From a symmetric matrix [width, width]."""
        made = cls(len(matrix))
        for rows, strip in made.strips():
            strip.copy_(matrix[rows, rows.start :])
        return made

    def add(self, flat: torch.Tensor, share: float) -> None:
        """Take inputs [rows, width], which make up `share` of all that were taken."""
        for rows, strip in self.strips():
            average(strip, flat[:, rows].T @ flat[:, rows.start :], share, len(flat))

    def clone(self) -> SecondMoments:
        copy = SecondMoments.__new__(SecondMoments)
        copy.width, copy._strips = self.width, [strip.clone() for strip in self._strips]
        return copy

    @property
    def nbytes(self) -> int:
        """What is held."""
        return sum(strip.nbytes for strip in self._strips)

    def diagonal(self) -> torch.Tensor:
        """A copy of it, float32 [width]."""
        return torch.cat([strip.diagonal() for strip in self._strips])

    def set_diagonal(self, values: torch.Tensor) -> None:
        for rows, strip in self.strips():
            strip.diagonal().copy_(values[rows])

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Whole rows, float32 [stop - start, width]."""
        whole = torch.empty(stop - start, self.width)
        for own, strip in self.strips():
            first, last = max(start, own.start), min(stop, own.stop)
            if first < last:
                whole[first - start : last - start, own.start :] = strip[first - own.start : last - own.start]
            below = max(start, own.stop)  # rows that mirror columns of this strip
            if below < stop:
                whole[below - start :, own] = strip[:, below - own.start : stop - own.start].T
        return whole

    def permuted(self, order: torch.Tensor) -> SecondMoments:
        """With features in this order, int64 [width]."""
        made, places = SecondMoments(self.width), order.argsort()
        for rows, _ in self.strips():
            found, goes_to = self.rows(rows.start, rows.stop)[:, order], places[rows]
            for own, strip in made.strips():
                here = (goes_to >= own.start) & (goes_to < own.stop)
                strip[goes_to[here] - own.start] = found[here, own.start :]
        return made

    def matrix(self) -> torch.Tensor:
        """All of it, float32 [width, width]."""
        return self.rows(0, self.width)

    def strips(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """What is held: rows, and where they lie. A strip begins at the diagonal: [rows, width - first row]."""
        return zip(parts(self.width), self._strips, strict=True)


def parts(width: int) -> Iterator[slice]:
    """Of FEATURES_AT_ONCE features or less."""
    return (slice(start, min(start + FEATURES_AT_ONCE, width)) for start in range(0, width, FEATURES_AT_ONCE))


def average(mean: torch.Tensor, product: torch.Tensor, share: float, rows: int) -> None:
    """Take a sum over `rows` into a running mean, of which they make up `share`."""
    mean.mul_(1 - share).add_(product, alpha=share / rows)
