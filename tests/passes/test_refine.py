import itertools

import pytest
import torch

from calibration.moments import SecondMoments
from compressor.quantized import QuantizedWeight, Scheme, shared_scale
from passes.grid import Grid, fit_grid, quantize
from passes.refine import Rounding, refine


def problem(out_features=12, in_features=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(in_features, in_features, generator=generator)
    inputs = torch.randn(512, in_features, generator=generator) @ mixing / 8
    return torch.randn(out_features, in_features, generator=generator), inputs.T @ inputs / 512


def error(weight, codes, grid, scheme, matrix):
    zero = None if grid.zero_points is None else grid.zero_points.to(torch.int8)
    off = QuantizedWeight(codes.T.to(torch.int8), grid.scales, zero, scheme).dequantize() - weight
    return ((off @ matrix) * off).sum(1)


def rounded(weight, scheme):
    grid = fit_grid(weight, scheme, None, search=False)
    return quantize(weight, scheme, grid).codes.float().T.contiguous(), grid


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, None])
def test_no_sweep_raises_the_error_of_any_row(symmetric, group_size):
    weight, matrix = problem()
    scheme = Scheme(4, group_size, symmetric)
    codes, grid = rounded(weight, scheme)
    before = error(weight, codes, grid, scheme, matrix)
    for _ in range(3):
        grid = refine(weight.T.contiguous(), codes, grid, SecondMoments.of(matrix), scheme, sweeps=1)
        after = error(weight, codes, grid, scheme, matrix)
        assert (after <= before * (1 + 1e-4)).all()
        before = after
    assert codes.min() >= scheme.lowest
    assert codes.max() <= scheme.highest
    assert torch.equal(shared_scale(grid.scales, 4), grid.scales)


def test_error_falls_well_below_that_of_rounding_to_nearest():
    weight, matrix = problem()
    scheme = Scheme(4, 32)
    codes, grid = rounded(weight, scheme)
    before = error(weight, codes, grid, scheme, matrix).sum()
    grid = refine(weight.T.contiguous(), codes, grid, SecondMoments.of(matrix), scheme, sweeps=4)
    assert error(weight, codes, grid, scheme, matrix).sum() < 0.6 * before


def test_integers_end_where_no_single_move_helps():
    """Against brute force: with the scales held, no other integer in any one place has a smaller error."""
    weight, matrix = problem(out_features=3, in_features=32, seed=1)
    scheme = Scheme(4, 32)
    codes, grid = rounded(weight, scheme)
    for _ in range(30):
        kept = Grid(grid.scales.clone(), None)
        refine(weight.T.contiguous(), codes, kept, SecondMoments.of(matrix), scheme, sweeps=1)
    best = error(weight, codes, grid, scheme, matrix)
    for column, code in itertools.product(range(32), range(-8, 8)):
        moved = codes.clone()
        moved[column] = code
        assert (error(weight, moved, grid, scheme, matrix) >= best * (1 - 1e-4)).all()


def test_scale_is_that_of_least_squares():
    """One group, from a scale that is far off: the float64 solution, rounded to a storable number."""
    weight, matrix = problem(out_features=4, in_features=32, seed=2)
    scheme = Scheme(4, None)
    codes, _ = rounded(weight, scheme)
    exact = codes.T.double()
    wanted = ((exact @ matrix.double()) * weight.double()).sum(1) / ((exact @ matrix.double()) * exact).sum(1)
    far_off = Grid(torch.full((4, 1), 100.0), None)
    rounding = Rounding(weight.T, codes, far_off, SecondMoments.of(matrix), scheme)
    rounding.refit_scales()
    assert torch.allclose(rounding.scales[0].double(), wanted, rtol=2**-8)
    assert torch.allclose(rounding.residual, weight.T - codes * rounding.scales, atol=1e-3)
