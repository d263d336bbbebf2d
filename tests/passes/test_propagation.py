import pytest
import torch

from calibration.activations import Drift, InputStatistics
from calibration.moments import SecondMoments
from compressor.errors import RunError
from passes import propagation
from passes.calibrated import check_finite
from passes.propagation import corrected


def problem(noise):
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(2048, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    inputs = references + noise * torch.randn(2048, 32, generator=generator)
    statistics = InputStatistics(32)
    statistics.add(inputs, references)
    return torch.randn(8, 32, generator=generator), inputs, references, statistics


def correction(statistics, weight):
    return corrected([weight], statistics.drift)[0]


def test_inputs_that_have_not_drifted_leave_the_weight_alone():
    weight, _, _, statistics = problem(noise=0)
    assert torch.equal(correction(statistics, weight), weight)


def test_equals_ridge_regression(monkeypatch):
    """min |W r - V x|² + ridge |V - W|² over V, solved in float64 from the activations themselves."""
    weight, inputs, references, statistics = problem(noise=2.0)
    ridge = propagation.RIDGE * float(statistics.gram.diagonal().mean())
    x, r, w = (part.double() for part in (inputs, references, weight))
    right = w @ r.T @ x / len(x) + ridge * w
    wanted = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(32, dtype=torch.float64), right.T).T
    assert torch.allclose(correction(statistics, weight).double(), wanted, atol=1e-4)
    monkeypatch.setattr(propagation, "RIDGE", 1e-6)
    free = correction(statistics, weight)
    fit, before = (((references @ weight.T - inputs @ each.T) ** 2).mean() for each in (free, weight))
    assert fit < 0.95 * before


def test_correction_brings_outputs_closer():
    weight, inputs, references, statistics = problem(noise=2.0)
    wanted = references @ weight.T
    errors = [float((inputs @ each.T - wanted).square().mean()) for each in (weight, correction(statistics, weight))]
    assert errors[1] < errors[0]


def test_statistics_that_cannot_be_factored_are_an_error():
    with pytest.raises(RunError, match="positive definite"):
        corrected([torch.ones(2, 4)], Drift(torch.zeros(4, 4), SecondMoments.of(-3 * torch.eye(4)), applied=False))


def test_overflow_of_the_original_alone_names_the_layer():
    statistics = InputStatistics(4)
    statistics.add(torch.ones(8, 4), torch.full((8, 4), float("inf")))
    with pytest.raises(RunError, match="inputs of down_proj hold NaN or Inf"):
        check_finite(statistics, "down_proj")
