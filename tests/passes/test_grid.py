import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantized import Scheme
from passes.grid import fit_grid, quantize

SCHEMES = [Scheme(bits, group, symmetric) for bits in (4, 8) for group in (32, None) for symmetric in (True, False)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_weight_is_within_half_a_step_unless_clipped(scheme):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    grid = fit_grid(weight, scheme, None, search=False)
    quantized = quantize(weight, scheme, grid)
    step = quantized.scales.repeat_interleave(64 // quantized.scales.shape[1], dim=1)
    error = (quantized.dequantize() - weight).abs()
    inside = (quantized.codes > scheme.lowest) & (quantized.codes < scheme.highest)
    # a scale rounded to eight significant bits moves nothing inside the range by more than half a step
    assert (error[inside] <= step[inside] * 0.5001).all()
    assert (error <= step * 1.01).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_and_zero_points_stay_in_range(scheme):
    weight = torch.randn(4, 64) * 3 + 1
    quantized = quantize(weight, scheme, fit_grid(weight, scheme, None, search=True))
    assert int(quantized.codes.min()) >= scheme.lowest
    assert int(quantized.codes.max()) <= scheme.highest
    assert (quantized.zero_points is None) == scheme.symmetric


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), symmetric=st.booleans())
def test_search_never_has_a_larger_error_than_the_full_range(seed, symmetric):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 64, generator=generator)
    importance = torch.rand(64, generator=generator) + 0.01
    scheme = Scheme(4, 32, symmetric)

    def error(search):
        found = quantize(weight, scheme, fit_grid(weight, scheme, importance, search)).dequantize()
        return ((found - weight).square() * importance).sum()

    assert error(True) <= error(False) * (1 + 1e-6)


def test_an_outlier_is_clipped_when_that_pays():
    weight = torch.full((1, 32), 0.1) * torch.linspace(-1, 1, 32)
    weight[0, 0] = 0.25
    importance = torch.ones(32)
    importance[0] = 1e-6
    searched = fit_grid(weight, Scheme(4, 32), importance, search=True)
    assert searched.scales.item() < fit_grid(weight, Scheme(4, 32), importance, search=False).scales.item()


def test_inputs_that_go_apart_are_those_of_a_diagonal_matrix():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    importance = torch.rand(64, generator=torch.Generator().manual_seed(3)) + 0.01
    blocks = torch.stack([torch.diag(group) for group in importance.view(2, 32)])
    for symmetric in (True, False):
        scheme = Scheme(4, 32, symmetric)
        one, other = (fit_grid(weight, scheme, each, search=True) for each in (importance, blocks))
        assert torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_that_go_together_are_searched_for_the_error_of_their_sum(symmetric):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(16, 64, generator=generator)
    inputs = torch.randn(256, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    blocks = torch.stack([part.T @ part for part in inputs.split(32, dim=1)])
    scheme = Scheme(4, 32, symmetric)

    def errors(importance, search):
        """Of each group's outputs."""
        difference = quantize(weight, scheme, fit_grid(weight, scheme, importance, search)).dequantize() - weight
        return torch.stack([(part @ group.T).square().sum(1) for part, group in zip(
            difference.split(32, dim=1), inputs.split(32, dim=1), strict=True)])  # fmt: skip

    together, apart = errors(blocks, True), errors(blocks.diagonal(dim1=1, dim2=2).flatten(), True)
    assert (together <= errors(None, False) * (1 + 1e-5)).all()
    assert (together <= apart * (1 + 1e-5)).all()
    assert together.sum() < 0.97 * apart.sum()


def test_all_zero_groups_round_to_zero():
    weight = torch.zeros(2, 64)
    for scheme in SCHEMES:
        quantized = quantize(weight, scheme, fit_grid(weight, scheme, None, search=True))
        assert torch.equal(quantized.dequantize(), weight)
