"""Which choice each item gets under one budget: the multiple-choice knapsack, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STEPS = 1 << 16  # the budget is counted in at most this many steps


def allocate(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """One choice for each item, so that the sizes' sum keeps the budget and the losses' sum is the least.

    Exact where the sizes' common divisor makes at most STEPS steps of the budget. Otherwise sizes are rounded up to
    whole steps: the result still keeps the budget, and is the best one for a budget smaller by a step an item.

    Args:
        sizes: of every choice of every item; any common unit, such as bits.
        losses: of the same choices, finite.

    Returns:
        The index of the chosen one for each item; of choices that lose the same, the smallest.

    Raises:
        ValueError: the smallest choices together are over the budget.
    """
    smallest = [min(choices) for choices in sizes]
    spare = budget - sum(smallest)
    if spare < 0:
        raise ValueError(f"a budget of {budget} is less than {sum(smallest)}, the least that fits")
    extra = [[size - least for size in choices] for choices, least in zip(sizes, smallest, strict=True)]
    step = _step([size for choices in extra for size in choices], spare)
    # No more than what the largest choices take.
    room = min(spare // step, sum(-(-max(choices) // step) for choices in extra))
    least = np.zeros(room + 1)  # of the items so far, by the steps they may take
    picked = []
    for item, item_losses in zip(extra, losses, strict=True):
        by_size = sorted(range(len(item)), key=lambda choice: (item[choice], item_losses[choice]))
        totals = np.stack([_shifted(least, -(-item[choice] // step)) + item_losses[choice] for choice in by_size])
        best = totals.argmin(axis=0)
        least = np.take_along_axis(totals, best[np.newaxis], axis=0)[0]
        picked.append(np.array(by_size)[best])
    return _walk_back(picked, extra, step, room)


def _step(sizes: Sequence[int], spare: int) -> int:
    return max(math.gcd(*sizes), -(-spare // STEPS), 1)


def _shifted(least: np.ndarray, steps: int) -> np.ndarray:
    """The least loss that leaves room for `steps` more; infinite where there is none."""
    moved = np.full_like(least, np.inf)
    moved[steps:] = least[: max(0, len(least) - steps)]
    return moved


def _walk_back(picked: Sequence[np.ndarray], extra: Sequence[Sequence[int]], step: int, room: int) -> list[int]:
    choices = []
    for item_picked, item in zip(reversed(picked), reversed(extra), strict=True):
        choice = int(item_picked[room])
        choices.append(choice)
        room -= -(-item[choice] // step)
    return choices[::-1]
