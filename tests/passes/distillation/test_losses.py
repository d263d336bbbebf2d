import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional

from passes.distillation.losses import divergence, hidden_error, likeliest

GENERATOR = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (3 * torch.randn(2, 5, 40, generator=GENERATOR) for _ in range(2))


def whole(temperature=1.0):
    return likeliest(TEACHER, 40, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_with_all_tokens_it_is_the_divergence_that_torch_computes(temperature):
    theirs, ours = (functional.log_softmax(one / temperature, -1) for one in (TEACHER, STUDENT))
    forward = functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
    backward = functional.kl_div(theirs, ours, log_target=True, reduction="none").sum(-1)
    told = whole(temperature)
    for kind, expected in (("forward_kl", forward), ("reverse_kl", backward)):
        found = divergence(STUDENT, told, kind, temperature)
        torch.testing.assert_close(found, temperature**2 * expected, rtol=1e-4, atol=1e-5)


def test_jsd_is_the_squared_distance_of_scipy():
    theirs, ours = (functional.softmax(one, -1).numpy() for one in (TEACHER, STUDENT))
    expected = jensenshannon(theirs, ours, axis=-1) ** 2
    np.testing.assert_allclose(divergence(STUDENT, whole(), "jsd", 1.0).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_few_tokens_give_a_lower_bound_and_an_equal_student_gives_zero(kind):
    exact = divergence(STUDENT, whole(), kind, 1.0)
    before = torch.zeros(())
    for count in (1, 4, 16):
        found = divergence(STUDENT, likeliest(TEACHER, count, 1.0), kind, 1.0)
        assert (found <= exact + 1e-5).all()
        assert found.mean() > before.mean(), "and more of them a closer one"
        before = found
    same = divergence(TEACHER, likeliest(TEACHER, 4, 1.0), kind, 1.0)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0)


def test_what_is_not_told_is_one_outcome():
    told = likeliest(TEACHER, 3, 1.0)
    merged = []
    for logits in (TEACHER, STUDENT):
        kept = functional.softmax(logits, -1).gather(-1, told.indices)
        merged.append(torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1))
    expected = (merged[0] * (merged[0] / merged[1]).log()).sum(-1)
    torch.testing.assert_close(divergence(STUDENT, told, "forward_kl", 1.0), expected, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_student_less_teacher():
    logits = STUDENT.clone().requires_grad_()
    divergence(logits, whole(), "forward_kl", 1.0).sum().backward()
    expected = functional.softmax(STUDENT, -1) - functional.softmax(TEACHER, -1)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-3, atol=1e-5)


def test_a_certain_teacher_gives_finite_losses_and_gradients():
    logits = STUDENT.clone().requires_grad_()
    certain = likeliest(100 * functional.one_hot(TEACHER.argmax(-1), 40).float(), 4, 1.0)
    loss = sum(divergence(logits, certain, kind, 1.0).sum() for kind in ("forward_kl", "reverse_kl", "jsd"))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_hidden_error_is_a_share():
    assert hidden_error(TEACHER, TEACHER) == 0
    torch.testing.assert_close(hidden_error(torch.zeros_like(TEACHER), TEACHER), torch.tensor(1.0))
