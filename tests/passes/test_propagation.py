import torch

from calibration.activations import InputStatistics
from passes import propagation
from passes.propagation import corrected


def problem(noise):
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(2048, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    inputs = references + noise * torch.randn(2048, 32, generator=generator)
    statistics = InputStatistics(32)
    statistics.add(inputs, references)
    return torch.randn(8, 32, generator=generator), inputs, references, statistics


def test_inputs_that_have_not_drifted_leave_the_weight_alone():
    weight, _, _, statistics = problem(noise=0)
    assert torch.equal(corrected(weight, statistics.drift), weight)


def test_equals_ridge_regression(monkeypatch):
    """min |W r - V x|² + ridge |V - W|² over V, solved in float64 from the activations themselves."""
    weight, inputs, references, statistics = problem(noise=2.0)
    ridge = propagation.RIDGE * float(statistics.gram.diagonal().mean())
    x, r, w = (part.double() for part in (inputs, references, weight))
    right = w @ r.T @ x / len(x) + ridge * w
    wanted = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(32, dtype=torch.float64), right.T).T
    assert torch.allclose(corrected(weight, statistics.drift).double(), wanted, atol=1e-4)
    monkeypatch.setattr(propagation, "RIDGE", 1e-6)
    free = corrected(weight, statistics.drift)
    fit, before = (((references @ weight.T - inputs @ each.T) ** 2).mean() for each in (free, weight))
    assert fit < 0.95 * before


def test_correction_brings_outputs_closer():
    weight, inputs, references, statistics = problem(noise=2.0)
    wanted = references @ weight.T
    errors = [
        float((inputs @ each.T - wanted).square().mean()) for each in (weight, corrected(weight, statistics.drift))
    ]
    assert errors[1] < errors[0]
