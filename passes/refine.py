"""Better integers and scales for a weight that is rounded already, by coordinate descent on the output error.

The error of a weight is quadratic in it: tr(D H Dᵀ) with D what rounding changed and H the second moments of the
inputs. Integers are gone over again one input at a time, each moved to what is best given all the others, and scales
are solved for by least squares; no step can raise the error.
Papers: Behdin et al., "QuantEase", 2023, for the integers; the scales are a least-squares problem in one unknown.
"""

from __future__ import annotations

import torch

from calibration.moments import SecondMoments
from compressor.quantized import Scheme, shared_scale
from passes.grid import Grid

COLUMNS_AT_ONCE = 128  # inputs whose gradient is kept up to date while their integers move


def refine(
    weight: torch.Tensor,
    codes: torch.Tensor,
    grid: Grid,
    moments: SecondMoments,
    scheme: Scheme,
    sweeps: int,
    kept: torch.Tensor | None = None,
) -> Grid:
    """Go over the integers `sweeps` times, and over the scales in between.

    Args:
        weight: the original one, float32 [in_features, out_features] (turned).
        codes: of the same shape; changed in place.
        grid: of the codes; the zero points stay as they are.
        moments: H, of the inputs.
        kept: which integers may move, bool of the same shape; None is all of them.

    Returns:
        The grid with better scales.
    """
    rounding = Rounding(weight, codes, grid, moments, scheme, kept)
    for sweep in range(sweeps):
        if sweep:
            rounding.refit_scales()
        rounding.move_codes()
    return Grid(rounding.scales.T.contiguous(), grid.zero_points)


class Rounding:
    """A rounded weight on its way to a better one; arguments as in `refine`.

    Attributes:
        codes: float32 [in_features, out_features].
        scales: float32 [groups, out_features].
        residual: the weight minus its rounded value, kept up to date.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        codes: torch.Tensor,
        grid: Grid,
        moments: SecondMoments,
        scheme: Scheme,
        kept: torch.Tensor | None = None,
    ) -> None:
        self.codes, self.scales = codes, grid.scales.T.contiguous()
        self._zero_points = None if grid.zero_points is None else grid.zero_points.T.contiguous()
        self._moments, self._scheme, self._kept = moments, scheme, kept
        self.residual = weight - _values(codes, self.scales, self._zero_points)

    @property
    def _width(self) -> int:
        """Inputs of a group."""
        return len(self.codes) // len(self.scales)

    def move_codes(self) -> None:
        """One pass over all inputs."""
        count = len(self.codes)
        curvature = self._moments.diagonal().tolist()
        for start in range(0, count, COLUMNS_AT_ONCE):
            end = min(start + COLUMNS_AT_ONCE, count)
            matrix, residual = self._moments.rows(start, end), self.residual[start:end]
            gradient, changes = matrix @ self.residual, torch.empty_like(residual)
            rows = zip(range(start, end), self.codes[start:end], gradient, changes, strict=True)
            for column, code, slope, change in rows:
                scale = self.scales[column // self._width]
                best = torch.addcdiv(code, slope, scale, value=1 / curvature[column])
                best.round_().clamp_(self._scheme.lowest, self._scheme.highest)
                if self._kept is not None:
                    best = torch.where(self._kept[column], best, code)
                torch.sub(best, code, out=change).mul_(scale)
                code.copy_(best)
                gradient[column - start + 1 :].addr_(matrix[column - start, column + 1 : end], change, alpha=-1)
            residual -= changes

    def refit_scales(self) -> None:
        """One pass over all groups: least squares, taken where, rounded to a storable number, it is better."""
        for group, scale in enumerate(self.scales):
            inputs = slice(group * self._width, (group + 1) * self._width)
            levels = self.codes[inputs] if self._zero_points is None else self.codes[inputs] - self._zero_points[group]
            gain, curvature = self._along(inputs, levels)
            wanted = shared_scale((scale + gain / curvature).clamp_(min=0), self._scheme.bits)
            change = wanted - scale
            change.mul_(change * (2 * gain - change * curvature) > 0)
            self.scales[group] += change
            self.residual[inputs] -= levels * change

    def _along(self, inputs: slice, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The error as a group's scale grows: half its fall, and half its curvature; [out_features] each."""
        gain = torch.zeros(levels.shape[1])
        curvature = torch.full_like(gain, torch.finfo(torch.float32).tiny)
        for start in range(inputs.start, inputs.stop, COLUMNS_AT_ONCE):
            end = min(start + COLUMNS_AT_ONCE, inputs.stop)
            matrix, own = self._moments.rows(start, end), levels[start - inputs.start : end - inputs.start]
            gain += ((matrix @ self.residual) * own).sum(0)
            curvature += ((matrix[:, inputs] @ levels) * own).sum(0)
        return gain, curvature


def _values(codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None) -> torch.Tensor:
    grouped = codes.view(len(scales), -1, codes.shape[1])
    levels = grouped if zero_points is None else grouped - zero_points.unsqueeze(1)
    return (levels * scales.unsqueeze(1)).view(codes.shape)
