"""The smallest set that is enough: found, within the bound, and none to spare."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.bisect.search import most_trials, smallest


@given(units=st.permutations(list(range(9))), needed=st.sets(st.integers(0, 8), min_size=1))
def test_it_finds_what_is_needed_in_any_order_within_the_bound(units, needed):
    tried = []

    def is_enough(chosen):
        tried.append(tuple(chosen))
        return needed <= set(chosen)

    found, ended = smallest(units, is_enough)
    assert (set(found), ended) == (needed, True)
    assert len(tried) <= most_trials(len(units))
    assert found == [unit for unit in units if unit in needed]


@given(losses=st.lists(st.integers(1, 20), min_size=1, max_size=7), share=st.floats(0.1, 1.0))
def test_where_losses_add_up_none_can_be_spared_and_none_is_more_than_the_fewest(losses, share):
    units = sorted(range(len(losses)), key=lambda unit: -losses[unit])

    def is_enough(chosen):
        return sum(losses[unit] for unit in chosen) >= share * sum(losses)

    found, _ = smallest(units, is_enough)
    assert is_enough(found)
    assert len(found) == 1 or not any(is_enough([one for one in found if one != unit]) for unit in found)
    sizes = [size for size in range(1, len(units) + 1) if any(map(is_enough, combinations(units, size)))]
    assert len(found) == sizes[0]


@pytest.mark.parametrize("trials", range(6))
def test_a_search_that_is_ended_has_a_set_that_is_enough(trials):
    left = iter([True] * trials + [False] * 100)
    found, ended = smallest(list(range(8)), lambda chosen: {1, 5} <= set(chosen), lambda: next(left))
    assert {1, 5} <= set(found)
    assert not ended
