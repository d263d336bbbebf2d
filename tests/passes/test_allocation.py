import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes import allocation
from passes.allocation import allocate

ITEMS = st.lists(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=4), min_size=1, max_size=5
)


def outcome(items, choices):
    picked = [item[choice] for item, choice in zip(items, choices, strict=True)]
    return sum(size for size, _ in picked), sum(loss for _, loss in picked)


def allocated(items, budget):
    sizes, losses = ([[choice[part] for choice in item] for item in items] for part in (0, 1))
    return allocate(sizes, losses, budget)


def least_loss(items, budget):
    """Every combination tried."""
    outcomes = (outcome(items, choices) for choices in itertools.product(*(range(len(item)) for item in items)))
    return min(loss for size, loss in outcomes if size <= budget)


@given(ITEMS, st.integers(0, 100), st.sampled_from([1, 7, 16]))
def test_no_combination_within_the_budget_loses_less(items, spare, unit):
    items = [[(size * unit, loss) for size, loss in item] for item in items]
    budget = sum(min(size for size, _ in item) for item in items) + spare
    size, loss = outcome(items, allocated(items, budget))
    assert size <= budget
    assert loss == least_loss(items, budget)


@given(ITEMS, st.integers(0, 100))
def test_coarse_steps_keep_the_budget_and_lose_no_more_than_a_smaller_one(items, spare):
    budget = sum(min(size for size, _ in item) for item in items) + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "STEPS", 16)
        size, loss = outcome(items, allocated(items, budget))
    assert size <= budget
    smaller = budget - (spare // 16 + 1) * len(items)
    if smaller >= budget - spare:
        assert loss <= least_loss(items, smaller)


@given(ITEMS)
def test_of_equal_losses_the_smallest_is_taken(items):
    equal = [[(size, 1) for size, _ in item] for item in items]
    size, _ = outcome(equal, allocated(equal, 1000))
    assert size == sum(min(size for size, _ in item) for item in equal)


def test_a_large_problem_is_close_to_its_linear_relaxation():
    sizes = [[4_000_003 + 17 * i, 4_400_021, 8_000_009 + 31 * i] for i in range(200)]
    losses = [[(i % 17) + 1.0, (i % 17) * 0.4 + 0.5, 0.01] for i in range(200)]
    budget = sum(item[0] for item in sizes) + 90_000_000
    choices = allocate(sizes, losses, budget)
    assert sum(item[choice] for item, choice in zip(sizes, choices, strict=True)) <= budget
    loss = sum(item[choice] for item, choice in zip(losses, choices, strict=True))
    assert loss <= relaxation(sizes, losses, budget) * 1.01


def relaxation(sizes, losses, budget):
    """Lagrange's dual, which is its bound: the best of many prices of a bit."""
    items = [list(zip(*item, strict=True)) for item in zip(sizes, losses, strict=True)]
    prices = [10 ** (-exponent / 40) for exponent in range(160, 360)]
    return max(
        sum(min(loss + price * size for size, loss in item) for item in items) - price * budget for price in prices
    )


def test_a_budget_below_the_smallest_is_refused():
    with pytest.raises(ValueError, match="less than 30"):
        allocate([[10, 20], [20, 30]], [[1.0, 0.0], [1.0, 0.0]], 29)
