"""Several texts at once, for runtimes that take rows of one length: padding, and greedy rows that end one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compressor.target import Ended

PADDING = 0  # any token: nothing that is judged sees it


def padded_behind(texts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows int64 [texts, longest] that begin with the texts. What stands behind a text does not change it."""
    rows = np.full((len(texts), max(map(len, texts))), PADDING, np.int64)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    return rows


def padded_in_front(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 [prompts, longest] that end with the prompts, and the mask of the same shape that is 0 for padding."""
    rows = np.full((len(prompts), max(map(len, prompts))), PADDING, np.int64)
    mask = np.zeros_like(rows)
    for row, seen, prompt in zip(rows, mask, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
        seen[len(row) - len(prompt) :] = 1
    return rows, mask


def greedy_rows(
    first: np.ndarray, following: Callable[[np.ndarray], np.ndarray], limit: int, ended: Ended
) -> list[list[int]]:
    """The tokens of each row until it ends, at most `limit`. Rows that have ended go on with the others, unheard.

    Args:
        first: the most likely token behind each prompt, int64 [rows].
        following: what gives those behind the last ones, int64 [rows] both.
    """
    rows = [[int(token)] for token in first]
    last, running = first, [limit > 1 and not ended(row) for row in rows]
    while any(running):
        last = following(last)
        for number in (number for number, runs in enumerate(running) if runs):
            rows[number].append(int(last[number]))
            running[number] = len(rows[number]) < limit and not ended(rows[number])
    return rows


def in_groups(lengths: Sequence[int], fits: Callable[[int, int, int], bool]) -> Iterator[list[int]]:
    """Numbers of texts, shortest first, in groups that are asked together.

    Args:
        fits: whether so many texts, of which the shortest and the longest have these lengths, are one group.
    """
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if group and not fits(len(group) + 1, lengths[group[0]], lengths[number]):
            yield group
            group = []
        group.append(number)
    if group:
        yield group
