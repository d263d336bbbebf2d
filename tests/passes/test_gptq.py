from pathlib import Path

import pytest
import torch

from calibration.activations import InputStatistics
from calibration.moments import SecondMoments
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes import gptq
from passes.gptq import GPTQ, solve
from passes.grid import fit_grid, quantize
from passes.hessian import Hessian


@pytest.fixture
def problem():
    """A weight [24, 64] and correlated inputs [2048, 64], as calibration sees them."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=generator) * torch.linspace(0.1, 2, 64)
    inputs = torch.randn(2048, 64, generator=generator) @ mixing / 8
    return torch.randn(24, 64, generator=generator), inputs


def moments_of(inputs):
    statistics = InputStatistics(inputs.shape[1])
    statistics.add(inputs)
    return statistics.moments


def hessian_of(inputs, act_order=True):
    return Hessian.of(moments_of(inputs), 0.01, act_order)


def output_error(weight, quantized, inputs):
    return float(((quantized.dequantize() - weight) @ inputs.T).square().mean())


def textbook_gptq(weight, gram, scheme, damping):
    """The update of the paper, one column at a time over the whole matrix, float64, no blocks, no reordering."""
    weight, gram = weight.double().clone(), gram.double()
    gram = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    grid = fit_grid(weight.float(), scheme, None, search=False)
    width = scheme.group_width(weight.shape[1])
    codes = torch.empty_like(weight)
    for k in range(weight.shape[1]):
        scale = grid.scales[:, k // width].double()
        zero = 0 if grid.zero_points is None else grid.zero_points[:, k // width].double()
        codes[:, k] = (weight[:, k] / scale + zero).round().clamp(scheme.lowest, scheme.highest)
        error = (weight[:, k] - (codes[:, k] - zero) * scale) / factor[k, k]
        weight[:, k + 1 :] -= error.unsqueeze(1) * factor[k, k + 1 :]
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, None])
def test_codes_equal_the_textbook_algorithm(problem, symmetric, group_size):
    weight, inputs = problem
    scheme = Scheme(4, group_size, symmetric)
    ours = solve(weight, hessian_of(inputs, act_order=False), scheme, scale_search=False, sweeps=0)
    theirs = textbook_gptq(weight, moments_of(inputs).matrix(), scheme, 0.01)
    # float32 against float64 may tip a value that lies on the border between two codes, and what follows from it
    assert (ours.codes == theirs).float().mean() > 0.99


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_are_closer_than_with_rounding_to_nearest(problem, bits, act_order):
    weight, inputs = problem
    scheme = Scheme(bits, 32)
    nearest = quantize(weight, scheme, fit_grid(weight, scheme, None, search=False))
    solved = solve(weight, hessian_of(inputs, act_order), scheme, sweeps=0)
    assert output_error(weight, solved, inputs) < 0.7 * output_error(weight, nearest, inputs)


def test_act_order_leaves_groups_as_they_lie(problem):
    """Scales belong to groups of neighbouring inputs whatever the order of rounding: no g_idx is needed."""
    weight, inputs = problem
    ordered = solve(weight, hessian_of(inputs, act_order=True), Scheme(4, 32), sweeps=0)
    plain = solve(weight, hessian_of(inputs, act_order=False), Scheme(4, 32), sweeps=0)
    assert torch.equal(ordered.scales, plain.scales)
    assert not torch.equal(ordered.codes, plain.codes)


def test_independent_inputs_are_rounded_to_nearest():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    scheme = Scheme(4, 32)
    solved = solve(
        weight, Hessian.of(SecondMoments.of(torch.eye(64)), 0.01, True), scheme, scale_search=False, sweeps=0
    )
    nearest = quantize(weight, scheme, fit_grid(weight, scheme, None, search=False))
    assert torch.equal(solved.codes, nearest.codes)


def test_dead_inputs_keep_their_weights(problem):
    weight, inputs = problem
    inputs[:, [3, 40]] = 0
    solved = solve(weight, hessian_of(inputs), Scheme(8, 32))
    error = (solved.dequantize() - weight)[:, [3, 40]].abs()
    assert error.max() < solved.scales.max()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weight_solved_in_parts_is_the_same(problem, symmetric, monkeypatch):
    weight, inputs = problem
    whole = solve(weight, hessian_of(inputs), Scheme(4, 32, symmetric))
    monkeypatch.setattr(gptq, "ELEMENTS_AT_ONCE", 7 * 64)
    parts = solve(weight, hessian_of(inputs), Scheme(4, 32, symmetric))
    assert (whole.codes == parts.codes).float().mean() > 0.99  # products of other shapes are summed in other orders
    assert parts.codes.shape == weight.shape


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_solved_together_are_the_same(problem, symmetric, monkeypatch):
    """Linears of one input, as many as fit, are one problem; a bfloat16 one too."""
    weight, inputs = problem
    weights = {"q": weight, "k": weight[:5] * 2, "v": weight.bfloat16(), "lm_head": weight[3:9]}
    one_pass = GPTQ(group_size=32, symmetric=symmetric, lm_head=8)

    def quantized():
        statistics = InputStatistics(inputs.shape[1])
        statistics.add(inputs)
        return one_pass.quantize(dict(weights), statistics, PassContext(Path(), {}, None, 0, lambda *_: None, []))

    together = quantized()
    monkeypatch.setattr(gptq, "ELEMENTS_AT_ONCE", 1)
    alone = quantized()
    assert list(together) == ["q.weight", "k.weight", "v.weight", "lm_head.weight"]
    for name, whole in together.items():
        assert whole.codes.shape == weights[name.removesuffix(".weight")].shape
        assert whole.scheme.bits == (8 if name == "lm_head.weight" else 4)
        assert (whole.codes == alone[name].codes).float().mean() > 0.99  # sums in another order may tip a tie


def test_dead_inputs_are_noted_by_layer(problem):
    weight, inputs = problem
    statistics, notes = InputStatistics(64), []
    statistics.add(inputs * (torch.arange(64) != 7))
    context = PassContext(Path(), {}, None, 0, lambda *_: None, notes)
    GPTQ(group_size=32).quantize({"up_proj": weight}, statistics, context)
    assert notes == ["up_proj: 1 inputs were never active; rounded to nearest"]


def test_solution_is_the_same_twice(problem):
    weight, inputs = problem
    first, second = (solve(weight, hessian_of(inputs), Scheme(4, 32)) for _ in range(2))
    assert first.same_bits(second)
