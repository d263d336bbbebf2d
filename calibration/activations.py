"""Statistics of what a linear reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibration.moments import SecondMoments, average, parts


@dataclass(frozen=True)
class Drift:
    """How far inputs x are from what the original model has in their place, r.

    Attributes:
        cross: mean of (r - x) xᵀ, float32 [in_features, in_features]; or, where `through` was given, of W (r - x) xᵀ,
            [out_features, in_features].
        moments: mean of x xᵀ over the same inputs.
        applied: whether the weight W is in `cross`.
    """

    cross: torch.Tensor
    moments: SecondMoments
    applied: bool


class InputStatistics:
    """Statistics of the inputs x [..., in_features] of a linear, taken batch by batch.

    Attributes:
        largest: absolute maximum of each feature, float32 [in_features].
        rows: how many inputs were seen.

    Args:
        through: the weight [out_features, in_features] of the only linear that reads these inputs: the drift is then
            that of its outputs, which is less to hold where they are fewer.
        moments: whether second moments are taken, which is most of the work.
    """

    def __init__(self, in_features: int, through: torch.Tensor | None = None, moments: bool = True) -> None:
        self._moments = SecondMoments(in_features) if moments else None
        self.largest = torch.zeros(in_features)
        self.rows = 0
        self._through = through
        self._cross: torch.Tensor | None = None
        self._before: SecondMoments | None = None  # of inputs with references, once others follow

    @property
    def moments(self) -> SecondMoments:
        """Mean of x xᵀ."""
        assert self._moments is not None, "maxima alone were asked for"
        return self._moments

    @property
    def gram(self) -> torch.Tensor:
        """Mean of x xᵀ, float32 [in_features, in_features], made anew."""
        return self.moments.matrix()

    @property
    def drift(self) -> Drift | None:
        """Over the inputs that came with references, or None when none did."""
        if self._cross is None:
            return None
        return Drift(self._cross, self._before or self.moments, self._through is not None)

    def take_drift(self) -> Drift | None:
        """The drift, which nothing holds but the caller from now on."""
        drift = self.drift
        self._cross = self._before = self._through = None
        return drift

    def add(self, inputs: torch.Tensor, references: torch.Tensor | None = None) -> None:
        """Take a batch of inputs, and what the original model has in place of the first of them.

        Inputs with references come before all others. A product of 16-bit inputs comes out in 16 bits and is averaged
        in float32: its rounding is far below the sampling error of the calibration text.
        """
        if references is not None and len(references) < len(inputs):
            self.add(inputs[: len(references)], references)
            inputs, references = inputs[len(references) :], None
        if references is None and self._cross is not None and self._before is None:
            self._before = self.moments.clone()
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.rows += len(flat)
        share = len(flat) / self.rows
        torch.maximum(self.largest, flat.abs().amax(0).float(), out=self.largest)
        if self._moments is not None:
            self._moments.add(flat, share)
        if references is not None:
            drifted = references.reshape(flat.shape) - flat
            self._add_drift(drifted if self._through is None else drifted @ self._through.T, flat, share)

    def _add_drift(self, drifted: torch.Tensor, flat: torch.Tensor, share: float) -> None:
        if self._cross is None:
            self._cross = torch.zeros(drifted.shape[1], flat.shape[1])
        for rows in parts(drifted.shape[1]):
            average(self._cross[rows], drifted[:, rows].T @ flat, share, len(flat))
