import pytest
import torch

from calibration.moments import SecondMoments
from compressor.errors import RunError
from passes.hessian import Hessian


@pytest.fixture
def gram():
    inputs = torch.randn(512, 48, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 48)
    return inputs.T @ inputs / 512


@pytest.mark.parametrize("act_order", [True, False])
def test_factor_gives_the_damped_matrix_in_rounding_order(gram, act_order):
    hessian = Hessian.of(SecondMoments.of(gram), 0.01, act_order)
    damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(48)
    ordered = damped[hessian.order][:, hessian.order]
    factor = hessian.factor.matrix().double()
    assert torch.allclose(factor.T @ factor, ordered, rtol=1e-4, atol=1e-5)
    assert torch.allclose(hessian.moments.matrix().double(), damped)


def test_most_active_inputs_come_first(gram):
    energy = gram.diagonal()[Hessian.of(SecondMoments.of(gram), 0.01, act_order=True).order]
    assert torch.equal(energy, energy.sort().values)


def test_dead_inputs_stand_alone_and_are_remarked(gram):
    gram[[3, 40]] = 0
    gram[:, [3, 40]] = 0
    hessian = Hessian.of(SecondMoments.of(gram), 0.01, act_order=False)
    place = hessian.order.tolist().index(3)
    others = [index for index in range(48) if index != place]
    factor = hessian.factor.matrix()
    assert not factor[place, others].any()
    assert not factor[others, place].any()
    assert hessian.remarks() == ["2 inputs were never active; rounded to nearest"]


def test_strong_inputs_with_rounding_noise_do_not_drown_the_weak_ones(gram):
    """Strong inputs that are one and the same up to noise: no reason to forget how the weak ones go together."""
    strong = torch.randn(16, 1, generator=torch.Generator().manual_seed(1)) * 1000
    noise = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    both = torch.zeros(64, 64)
    both[:48, :48] = gram
    both[48:, 48:] = strong @ strong.T * (1 + 1e-3 * (noise + noise.T))
    hessian = Hessian.of(SecondMoments.of(both), 1e-6, act_order=True)
    assert 0 < hessian.rescue <= 0.1
    assert "made" in hessian.remarks()[0] or "definite" in hessian.remarks()[0]
    damped = hessian.moments.matrix()[:48, :48]
    weak = damped - torch.diag(damped.diagonal())
    assert torch.equal(weak, gram - torch.diag(gram.diagonal()))
    assert float((damped.diagonal() / gram.diagonal()).median()) < 1.3


def test_a_hopeless_matrix_is_an_error_not_a_crash():
    with pytest.raises(RunError, match="positive definite"):
        Hessian.of(SecondMoments.of(-torch.eye(8)), 0.01, act_order=True)
