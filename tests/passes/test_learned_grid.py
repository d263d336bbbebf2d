import pytest
import torch

from calibration.moments import SecondMoments
from compressor.quantized import Scheme, shared_scale
from passes.gptq import solve
from passes.grid import Grid, fit_grid, quantize
from passes.hessian import Hessian
from passes.learned_grid import MARGIN, REACH, Learned, LearnedWeight, fake_quantize, nearest_that_rounds_to

SCHEMES = [Scheme(bits, group, symmetric) for bits in (4, 8) for group in (32, None) for symmetric in (True, False)]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weight():
    return random(6, 64, seed=0)


def nearest(weight, scheme):
    return quantize(weight, scheme, fit_grid(weight, scheme, None, search=True))


def gptq(weight, scheme):
    inputs = random(512, 64, seed=1) @ random(64, 64, seed=2)
    return solve(weight, Hessian.of(SecondMoments.of(inputs.T @ inputs / 512), 0.01, act_order=True), scheme)


def start_of(rounded):
    return Grid(rounded.scales, None if rounded.zero_points is None else rounded.zero_points.float())


def grouped(weight, rounded):
    return weight.view(*rounded.scales.shape, -1)


def descend(learned, goal, rate, steps):
    """On half the squared distance between the values and `goal`."""
    for step in range(steps):
        learned.values.grad = learned.values.detach() - goal
        learned.step(rate * (1 - step / steps))


@each_scheme
@pytest.mark.parametrize("solver", [nearest, gptq])
def test_learning_starts_from_the_very_codes_it_is_given(weight, scheme, solver):
    rounded = solver(weight, scheme)
    learned = LearnedWeight(rounded, weight, torch.float32)
    assert learned.quantized().same_bits(rounded)
    assert torch.equal(learned.values, rounded.dequantize())


@each_scheme
def test_what_is_trained_is_what_will_be_stored(weight, scheme):
    rounded = nearest(weight, scheme)
    learned = LearnedWeight(rounded, weight, torch.float32)
    descend(learned, goal=weight.roll(1, 0), rate=0.1, steps=9)
    quantized = learned.quantized()
    assert torch.equal(learned.values, quantized.dequantize())
    assert not torch.equal(quantized.codes, rounded.codes)
    assert not torch.equal(quantized.scales, rounded.scales)
    assert torch.equal(shared_scale(quantized.scales, scheme.bits), quantized.scales)
    for codes in (quantized.codes, quantized.zero_points):
        assert codes is None or (int(codes.min()) >= scheme.lowest and int(codes.max()) <= scheme.highest)


def learnables(rounded, size, seed):
    """Random offsets [6, groups, width] and widenings, within `size`."""
    ends = 1 if rounded.scheme.symmetric else 2
    offsets = grouped(random(6, 64, seed=seed), rounded).clamp(-1, 1) * size
    return offsets, random(*rounded.scales.shape, ends, seed=seed + 1).clamp(-1, 1) * size


@each_scheme
def test_descent_goes_to_what_the_learned_grid_can_express(weight, scheme):
    rounded = nearest(weight, scheme)
    goal = fake_quantize(grouped(weight, rounded), *learnables(rounded, 0.4, seed=3), start_of(rounded), scheme)
    learned = LearnedWeight(rounded, weight, torch.float32)
    descend(learned, goal.view(6, 64), rate=0.01, steps=100)
    found = learned.quantized().dequantize()
    assert distance(found, goal) < 0.8 * distance(rounded.dequantize(), goal)


def distance(values, goal):
    return float((values - goal.view(6, 64)).square().sum())


def gradients_by_hand(upstream, weight, offsets, widenings, start, scheme):
    """Straight-through gradients of `fake_quantize`, written out in float64."""
    upstream, weight, offsets, widenings = (part.double() for part in (upstream, weight, offsets, widenings))
    lowest, highest, steps = scheme.lowest, scheme.highest, 2**scheme.bits - 1
    step = start.scales.double()
    zero = 0 if start.zero_points is None else start.zero_points.double()
    low, high = (lowest - zero - widenings[..., 0]) * step, (highest - zero + widenings[..., -1]) * step
    scale = shared_scale(((high - low) / steps).float(), scheme.bits).double()
    exact = torch.zeros_like(scale) if scheme.symmetric else lowest - low / scale
    zero = exact.round().clamp(lowest, highest)
    unclipped = (weight / scale[..., None] + offsets).round() + zero[..., None]
    inside = (unclipped >= lowest) & (unclipped <= highest)
    level = unclipped.clamp(lowest, highest) - zero[..., None]

    by_zero = (upstream * torch.where(inside, 0, -scale[..., None])).sum(-1)
    by_zero *= (not scheme.symmetric) & (exact.round() == zero)
    by_scale = (upstream * torch.where(inside, level - weight / scale[..., None], level)).sum(-1)
    by_scale += by_zero * low / scale**2
    by_low, by_high = by_scale / steps * step + by_zero / scale * step, by_scale / steps * step
    ends = (by_low + by_high)[..., None] if scheme.symmetric else torch.stack((by_low, by_high), -1)
    return torch.where(inside, upstream * scale[..., None], 0), ends


@each_scheme
def test_gradients_equal_those_derived_by_hand(weight, scheme):
    rounded = nearest(weight, scheme)
    start, weight = start_of(rounded), grouped(weight, rounded)
    learned = tuple(part.requires_grad_() for part in learnables(rounded, 0.5, seed=5))
    upstream = random(*weight.shape, seed=7)
    found = torch.autograd.grad(fake_quantize(weight, *learned, start, scheme), learned, upstream)
    expected = gradients_by_hand(upstream, weight, *(part.detach() for part in learned), start, scheme)
    assert bool((expected[0] == 0).any()), "some weights are clipped"
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@each_scheme
def test_steps_equal_those_of_torch_on_gradients_derived_by_hand(weight, scheme):
    rounded = nearest(weight, scheme)
    start, values = start_of(rounded), grouped(nearest_that_rounds_to(rounded, weight), rounded)
    learned = LearnedWeight(rounded, weight, torch.float32)
    reference = tuple(torch.zeros_like(part) for part in learnables(rounded, 0.0, seed=0))
    adam = torch.optim.Adam(reference, betas=(0.9, 0.95), eps=torch.finfo(torch.float32).tiny)
    for rate, seed in ((0.2, 8), (0.1, 9), (0.05, 10)):
        upstream = random(*weight.shape, seed=seed)
        learned.values.grad = upstream
        learned.step(rate)
        adam.param_groups[0]["lr"] = rate
        gradients = gradients_by_hand(grouped(upstream, rounded), values, *reference, start, scheme)
        for part, gradient in zip(reference, gradients, strict=True):
            part.grad = gradient.float()
        adam.step()
    expected = fake_quantize(values, *reference, start, scheme).view(weight.shape)
    assert not torch.equal(expected, rounded.dequantize())
    # a value that lies on the border between two codes may fall to either side
    assert torch.isclose(learned.values, expected).float().mean() > 0.99


def test_nothing_moves_beyond_its_reach():
    learned = Learned.zeros(3)
    for count in (1, 2, 3):
        learned.step(torch.tensor([-1e-9, 3.0, 0.0]), rate=0.2, count=count)
    assert learned.value.tolist() == [REACH, -REACH, 0.0]


def test_what_has_no_steady_direction_hardly_moves():
    learned = Learned.zeros(2)
    for count in range(1, 41):
        learned.step(torch.tensor([1.0, (-1.0) ** count]), rate=0.01, count=count)
    assert learned.value[1].abs() < 0.1 * learned.value[0].abs()


@each_scheme
def test_a_weight_that_was_rounded_to_nearest_starts_where_it_is(weight, scheme):
    rounded = nearest(weight, scheme)
    moved = (nearest_that_rounds_to(rounded, weight) - weight).abs()
    assert (moved <= 1.01 * MARGIN * rounded.scales.repeat_interleave(64 // rounded.scales.shape[1], 1)).all()
    assert (moved == 0).float().mean() > 0.8


@each_scheme
def test_the_others_start_at_the_near_border_of_the_code_they_were_given(weight, scheme):
    rounded = gptq(weight, scheme)
    found = nearest_that_rounds_to(rounded, weight)
    assert not torch.equal(rounded.codes, quantize(weight, scheme, start_of(rounded)).codes)
    assert torch.equal(rounded.codes, quantize(found, scheme, start_of(rounded)).codes)
    assert ((found - weight).abs() <= (rounded.dequantize() - weight).abs() + 1e-6).all()
