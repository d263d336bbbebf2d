import pytest
import torch

from calibration import moments
from calibration.moments import SecondMoments
from passes.cholesky import Factor


@pytest.fixture(params=[256, 24, 7], ids=lambda width: f"strips of {width}")
def matrix(request, monkeypatch):
    """Positive definite, [60, 60], and strips that do and do not divide it."""
    monkeypatch.setattr(moments, "FEATURES_AT_ONCE", request.param)
    inputs = torch.randn(200, 60, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 60)
    return inputs.T @ inputs / 200


def test_factor_is_that_of_lapack(matrix):
    wanted = torch.linalg.cholesky(matrix.double(), upper=True)
    factor = Factor.of(SecondMoments.of(matrix))
    assert torch.allclose(factor.matrix().double(), wanted, atol=1e-5)
    assert torch.equal(factor.matrix(), factor.matrix().triu())
    assert torch.equal(factor.diagonal(), factor.matrix().diagonal())


@pytest.mark.parametrize("most", [60, 5])
def test_strips_begin_at_the_diagonal_and_leave_nothing_out(matrix, most):
    factor = Factor.of(SecondMoments.of(matrix))
    rebuilt, seen = torch.zeros(60, 60), 0
    for start, strip in factor.strips_of(most):
        assert start == seen and len(strip) <= most
        rebuilt[start : start + len(strip), start:] = strip
        seen += len(strip)
    assert torch.equal(rebuilt.triu(), factor.matrix()) and seen == 60


def test_solving_is_multiplying_with_the_inverse(matrix):
    targets = torch.randn(9, 60, generator=torch.Generator().manual_seed(1))
    wanted = targets.double() @ matrix.double().inverse()
    Factor.of(SecondMoments.of(matrix)).solve_(targets)
    assert torch.allclose(targets.double(), wanted, rtol=1e-3, atol=1e-3)


def test_what_is_not_positive_definite_has_no_factor(matrix):
    matrix[59, 59] = -1
    assert Factor.of(SecondMoments.of(matrix)) is None
