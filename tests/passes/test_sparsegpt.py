import pytest
import torch

from calibration.activations import InputStatistics
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.pass_ import PassContext
from compressor.registry import make_pass
from passes import sparsegpt
from passes.fitting import settle
from passes.hessian import Hessian
from passes.sparsegpt import prune
from passes.sparsity import parse_pattern


@pytest.fixture
def problem():
    """A weight [24, 192], two blocks wide, and correlated inputs [2048, 192]."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(192, 192, generator=generator) * torch.linspace(0.1, 2, 192)
    inputs = torch.randn(2048, 192, generator=generator) @ mixing / 12
    return torch.randn(24, 192, generator=generator), inputs


def hessian_of(inputs):
    statistics = InputStatistics(inputs.shape[1])
    statistics.add(inputs)
    return Hessian.of(statistics.moments, 0.01, act_order=False)


def papers_sparsegpt(weight, gram, sparsity, pattern, blocks=((0, 64), (64, 192)), damping=0.01):
    """The algorithm of the paper: the inverse's upper factor, a mask a block or a group, float64.

    Ours counts blocks from the end, so that the first is the narrow one.
    """
    weight, gram = weight.double().clone(), gram.double()
    gram = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    diagonal, gone = factor.diagonal(), torch.zeros_like(weight, dtype=torch.bool)
    for k in range(weight.shape[1]):
        for first, end in blocks:
            if pattern is None and k == first:
                costs = (weight[:, k:end] / diagonal[k:end]).square()
                gone[:, k:end] = costs <= costs.flatten().sort()[0][int(costs.numel() * sparsity) - 1]
        if pattern is not None and k % pattern.of == 0:
            costs = (weight[:, k : k + pattern.of] / diagonal[k : k + pattern.of]).square()
            gone.scatter_(1, k + costs.topk(pattern.of - pattern.kept, largest=False)[1], True)
        error = torch.where(gone[:, k], weight[:, k], 0.0) / diagonal[k]
        weight[:, k:] -= error.unsqueeze(1) * factor[k, k:]
        weight[gone[:, k], k] = 0
    return weight


@pytest.mark.parametrize("pattern", ["none", "2:4", "2:8"])
def test_weights_are_those_of_the_paper(problem, pattern):
    weight, inputs = problem
    pattern = parse_pattern(pattern)
    found = prune(weight, hessian_of(inputs), 0.5, pattern, iterations=0)
    expected = papers_sparsegpt(weight, inputs.T @ inputs / len(inputs), 0.5, pattern).float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_is_left_is_solved_exactly(problem):
    """With enough iterations: ordinary least squares of each row over its own entries."""
    weight, inputs = problem
    hessian = hessian_of(inputs)
    pruned = prune(weight, hessian, 0.5, None, iterations=0)
    kept, gram = pruned != 0, hessian.moments.matrix()
    settled = pruned.T.contiguous()
    settle(weight.T.contiguous(), settled, hessian.moments, iterations=300)
    for row, mask, found in zip(weight, kept, settled.T, strict=True):
        expected = torch.linalg.solve(gram[mask][:, mask].double(), (gram[mask] @ row).double())
        torch.testing.assert_close(found[mask], expected.float(), rtol=1e-3, atol=1e-3)
        assert not found[~mask].any()


def test_each_step_comes_closer(problem):
    weight, inputs = problem
    hessian = hessian_of(inputs)

    def error(found):
        return float(((found - weight) @ inputs.T).square().mean())

    errors = [error(prune(weight, hessian, 0.5, None, iterations)) for iterations in (0, 1, 4, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_large_weights_are_solved_in_parts(problem, monkeypatch):
    weight, inputs = problem
    whole = prune(weight, hessian_of(inputs), 0.5, parse_pattern("2:4"), 3)
    monkeypatch.setattr(sparsegpt, "ELEMENTS_AT_ONCE", 5 * weight.shape[1])
    torch.testing.assert_close(prune(weight, hessian_of(inputs), 0.5, parse_pattern("2:4"), 3), whole)


@pytest.mark.parametrize(("dtype", "stored"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_weights_are_rounded_once_to_what_the_checkpoint_has(tiny_model, tmp_path, dtype, stored):
    from transformers import AutoModelForCausalLM

    root, tokens = tiny_model("llama"), torch.randint(0, 256, (4, 48))
    AutoModelForCausalLM.from_pretrained(root).bfloat16().save_pretrained(root)
    one = make_pass("sparsegpt", {"dtype": dtype})
    step = one.apply(Checkpoint.open(root), PassContext(tmp_path / "out", {}, tokens, 0, lambda *_: None, []))
    assert {info.dtype for info in step.tensors.values()} == {stored}


@pytest.mark.parametrize(
    ("options", "says"), [({"damping": 0}, "outside"), ({"damping": 2}, "outside"), ({"iterations": -1}, "is negative")]
)
def test_options_that_make_no_sense(tiny_model, options, says):
    with pytest.raises(InputError, match=says):
        make_pass("sparsegpt", options).plan(Checkpoint.open(tiny_model("llama")).architecture, {})
