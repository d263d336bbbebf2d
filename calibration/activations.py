"""Statistics of what a linear reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

FEATURES_AT_ONCE = 256  # rows of a product of inputs that are computed and averaged at once


@dataclass(frozen=True)
class Drift:
    """How far inputs x are from what the original model has in their place, r.

    Attributes:
        cross: mean of (r - x) xᵀ, float32 [in_features, in_features].
        gram: mean of x xᵀ over the same inputs.
    """

    cross: torch.Tensor
    gram: torch.Tensor


class InputStatistics:
    """Statistics of the inputs x [..., in_features] of a linear, taken batch by batch.

    Attributes:
        largest: absolute maximum of each feature, float32 [in_features].
        rows: how many inputs were seen.
    """

    def __init__(self, in_features: int) -> None:
        self.largest = torch.zeros(in_features)
        self.rows = 0
        self._gram = _SecondMoments(in_features)
        self._cross: torch.Tensor | None = None
        self._before: torch.Tensor | None = None  # the moments of inputs with references, once others follow

    @property
    def gram(self) -> torch.Tensor:
        """Mean of x xᵀ, float32 [in_features, in_features]."""
        return self._gram.matrix

    @property
    def drift(self) -> Drift | None:
        """Over the inputs that came with references, or None when none did."""
        return None if self._cross is None else Drift(self._cross, self.gram if self._before is None else self._before)

    def take_drift(self) -> Drift | None:
        """The drift, which nothing holds but the caller from now on."""
        drift, self._cross, self._before = self.drift, None, None
        return drift

    def add(self, inputs: torch.Tensor, references: torch.Tensor | None = None) -> None:
        """Take a batch of inputs, and what the original model has in their place; those with references come first.

        A product of 16-bit inputs comes out in 16 bits and is averaged in float32: its rounding is far below the
        sampling error of the calibration text.
        """
        if references is None and self._cross is not None and self._before is None:
            self._before = self.gram.clone()
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.rows += len(flat)
        torch.maximum(self.largest, torch.maximum(flat.amax(0), -flat.amin(0)).float(), out=self.largest)
        self._gram.add(flat, len(flat) / self.rows)
        if references is not None:
            if self._cross is None:
                self._cross = torch.zeros_like(self._gram.matrix)
            drifted = references.reshape(flat.shape) - flat
            for rows in _parts(flat.shape[1]):
                _average(self._cross[rows], drifted[:, rows].T @ flat, len(flat) / self.rows, len(flat))


class _SecondMoments:
    """A running mean of x xᵀ. Of the two halves, which mirror each other, one is computed."""

    def __init__(self, width: int) -> None:
        self._matrix = torch.zeros(width, width)
        self._mirrored = True

    def add(self, flat: torch.Tensor, share: float) -> None:
        """Take inputs [rows, width], of which `share` of all rows so far are made up."""
        for rows in _parts(flat.shape[1]):
            product = flat[:, rows].T @ flat[:, rows.start :]
            _average(self._matrix[rows, rows.start :], product, share, len(flat))
        self._mirrored = False

    @property
    def matrix(self) -> torch.Tensor:
        """Float32 [width, width]."""
        if not self._mirrored:
            for rows in _parts(len(self._matrix)):
                self._matrix[rows.stop :, rows] = self._matrix[rows, rows.stop :].T
            self._mirrored = True
        return self._matrix


def _parts(width: int) -> Iterator[slice]:
    return (slice(start, min(start + FEATURES_AT_ONCE, width)) for start in range(0, width, FEATURES_AT_ONCE))


def _average(mean: torch.Tensor, product: torch.Tensor, share: float, rows: int) -> None:
    """Take a sum over `rows` into a running mean, of which they make up `share`."""
    mean.mul_(1 - share).add_(product, alpha=share / rows)
