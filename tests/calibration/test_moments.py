import pytest
import torch

from calibration import moments as module
from calibration.moments import SecondMoments


@pytest.fixture(params=[256, 24, 7], ids=lambda width: f"strips of {width}")
def inputs(request, monkeypatch):
    """200 inputs of 60 features, and strips that do and do not divide them."""
    monkeypatch.setattr(module, "FEATURES_AT_ONCE", request.param)
    return torch.randn(200, 60, generator=torch.Generator().manual_seed(0))


def test_moments_of_batches_are_those_of_all_inputs(inputs):
    moments = SecondMoments(60)
    moments.add(inputs[:50], 1.0)
    moments.add(inputs[50:], 0.75)
    wanted = inputs.T @ inputs / 200
    assert torch.allclose(moments.matrix(), wanted, atol=1e-5)
    assert torch.allclose(moments.matrix(), moments.matrix().T, atol=1e-6)
    assert torch.equal(moments.diagonal(), moments.matrix().diagonal())


def test_rows_and_orders_are_those_of_the_matrix(inputs):
    matrix = inputs.T @ inputs
    matrix = matrix + matrix.T
    moments = SecondMoments.of(matrix)
    assert torch.equal(moments.matrix(), matrix)
    for start, stop in [(0, 60), (0, 1), (59, 60), (5, 31), (24, 48), (7, 8)]:
        assert torch.equal(moments.rows(start, stop), matrix[start:stop])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(moments.permuted(order).matrix(), matrix[order][:, order])


def test_a_copy_is_its_own(inputs):
    moments = SecondMoments.of(inputs.T @ inputs)
    copy = moments.clone()
    copy.set_diagonal(torch.arange(60.0))
    assert torch.equal(copy.diagonal(), torch.arange(60.0))
    assert torch.equal(moments.matrix(), SecondMoments.of(inputs.T @ inputs).matrix())
    off = copy.matrix() - copy.diagonal().diag()
    assert torch.equal(off, moments.matrix() - moments.diagonal().diag())
