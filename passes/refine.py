"""Better integers and scales for a weight that is rounded already, by coordinate descent on the output error.

The error of a weight is quadratic in it: tr(D H Dᵀ) with D what rounding changed and H the second moments of the
inputs. Integers are gone over again one input at a time, each moved to what is best given all the others, and scales
are solved for by least squares; no step can raise the error.
Papers: Behdin et al., "QuantEase", 2023, for the integers; the scales are a least-squares problem in one unknown.
"""

from __future__ import annotations

import torch

from calibration.activations import SecondMoments
from compressor.quantized import Scheme, shared_scale
from passes.grid import Grid

COLUMNS_AT_ONCE = 128  # inputs whose gradient is kept up to date while their integers move


def refine(
    weight: torch.Tensor, codes: torch.Tensor, grid: Grid, moments: SecondMoments, scheme: Scheme, sweeps: int
) -> Grid:
    """Go over the integers `sweeps` times, and over the scales in between.

    Args:
        weight: the original one, float32 [in_features, out_features] (turned).
        codes: of the same shape; changed in place.
        grid: of the codes; the zero points stay as they are.
        moments: H, of the inputs.

    Returns:
        The grid with better scales.
    """
    scales = grid.scales.T.contiguous()
    zero_points = None if grid.zero_points is None else grid.zero_points.T.contiguous()
    residual = weight - _values(codes, scales, zero_points)
    for sweep in range(sweeps):
        if sweep:
            _refit_scales(residual, codes, scales, zero_points, moments, scheme)
        _move_codes(residual, codes, scales, zero_points, moments, scheme)
    return Grid(scales.T.contiguous(), grid.zero_points)


def _move_codes(
    residual: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    moments: SecondMoments,
    scheme: Scheme,
) -> None:
    """One pass over all inputs; `residual` (weight minus its rounded value) and `codes` are kept up to date."""
    count = len(codes)
    width = count // len(scales)
    curvature = moments.diagonal().tolist()
    for start in range(0, count, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, count)
        matrix = moments.rows(start, end)
        gradient, changes = matrix @ residual, torch.empty_like(residual[start:end])
        rows = zip(range(start, end), codes[start:end], gradient, changes, strict=True)
        for column, code, slope, change in rows:
            scale = scales[column // width]
            best = torch.addcdiv(code, slope, scale, value=1 / curvature[column])
            best.round_().clamp_(scheme.lowest, scheme.highest)
            torch.sub(best, code, out=change).mul_(scale)
            code.copy_(best)
            gradient[column - start + 1 :].addr_(matrix[column - start, column + 1 : end], change, alpha=-1)
        residual[start:end] -= changes


def _refit_scales(
    residual: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    moments: SecondMoments,
    scheme: Scheme,
) -> None:
    """One pass over all groups; `residual` and `scales` are kept up to date."""
    width = len(codes) // len(scales)
    for group, scale in enumerate(scales):
        rows = slice(group * width, (group + 1) * width)
        levels = codes[rows] if zero_points is None else codes[rows] - zero_points[group]
        _refit_scale(residual, levels, scale, moments, rows, scheme)


def _refit_scale(
    residual: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    moments: SecondMoments,
    rows: slice,
    scheme: Scheme,
) -> None:
    """Least squares for the scale of one group, in place; taken where, rounded to a storable number, it is better."""
    gain, curvature = torch.zeros_like(scale), torch.full_like(scale, torch.finfo(torch.float32).tiny)
    for start in range(rows.start, rows.stop, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, rows.stop)
        matrix, own = moments.rows(start, end), levels[start - rows.start : end - rows.start]
        gain += ((matrix @ residual) * own).sum(0)
        curvature += ((matrix[:, rows] @ levels) * own).sum(0)
    wanted = shared_scale((scale + gain / curvature).clamp_(min=0), scheme.bits)
    change = wanted - scale
    change.mul_(change * (2 * gain - change * curvature) > 0)
    scale += change
    residual[rows] -= levels * change


def _values(codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None) -> torch.Tensor:
    grouped = codes.view(len(scales), -1, codes.shape[1])
    levels = grouped if zero_points is None else grouped - zero_points.unsqueeze(1)
    return (levels * scales.unsqueeze(1)).view(codes.shape)
