"""The smallest set whose taking back is enough, in few trials: halving along an order, then leaving out one by one.

The second part is that of delta debugging (Zeller and Hildebrandt, IEEE TSE 28, 2002, 183-200): where taking more back
never does harm, what is left is 1-minimal, no single member can be spared. Smaller sets of quite other members are not
looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Unit = TypeVar("Unit")


def most_trials(units: int) -> int:
    """Upper bound of the trials for so many units."""
    return units.bit_length() + max(0, units - 1)


def smallest(
    units: Sequence[Unit], is_enough: Callable[[list[Unit]], bool], may_go_on: Callable[[], bool] = lambda: True
) -> tuple[list[Unit], bool]:
    """A set that is enough, in the order of `units`, and whether the search came to its end.

    Args:
        units: likeliest first. All of them together are known to be enough.
        is_enough: a trial, which is what costs.
        may_go_on: asked before every trial; where it ends the search, the set is enough and may be too large.
    """
    low, high = 1, len(units)  # the first `high` are enough
    while low < high:
        if not may_go_on():
            return list(units[:high]), False
        middle = (low + high) // 2
        if is_enough(list(units[:middle])):
            high = middle
        else:
            low = middle + 1
    found = list(units[:high])
    for unit in reversed(found[:-1]):  # without the last one it was not enough
        if not may_go_on():
            return found, False
        rest = [one for one in found if one != unit]
        if is_enough(rest):
            found = rest
    return found, True
