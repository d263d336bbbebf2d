import pytest
import torch

from calibration import moments
from calibration.activations import InputStatistics


@pytest.fixture(params=[256, 24, 7], ids=lambda width: f"strips of {width}")
def inputs(request, monkeypatch):
    """200 inputs of 60 features, and strips that do and do not divide them."""
    monkeypatch.setattr(moments, "FEATURES_AT_ONCE", request.param)
    return torch.randn(200, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("outputs", [None, 9])
def test_drift_is_of_the_inputs_with_references_only(inputs, outputs):
    weight = None if outputs is None else torch.randn(outputs, 60, generator=torch.Generator().manual_seed(1))
    statistics = InputStatistics(60, weight)
    references = inputs + torch.randn(200, 60, generator=torch.Generator().manual_seed(2))
    statistics.add(inputs[:30], references[:30])
    statistics.add(inputs[30:80], references[30:80])
    statistics.add(inputs[80:])
    drift, seen = statistics.take_drift(), inputs[:80]
    wanted = (references[:80] - seen).T @ seen / 80
    assert torch.allclose(drift.cross, wanted if weight is None else weight @ wanted, atol=1e-4)
    assert drift.applied == (weight is not None)
    assert torch.allclose(drift.moments.matrix(), seen.T @ seen / 80, atol=1e-5)
    assert torch.allclose(statistics.gram, inputs.T @ inputs / 200, atol=1e-5)
    assert statistics.drift is None
    assert torch.equal(statistics.largest, inputs.abs().amax(0))
