"""Regular expressions that come from files: a match has a time limit, so that none keeps a run from going on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from compressor.errors import InputError

SECONDS = 0.5  # of one match, which takes microseconds
LONGEST = 20_000  # characters of a pattern: compiling has no limit of its own


def matches(pattern: str, text: str, where: str, whole: bool = False) -> bool:
    """Whether a text begins with what a pattern describes, as `re.match` finds it, or is that as a whole.

    Args:
        where: the pattern comes from, for the error.

    Raises:
        InputError: it is no regular expression, or matching takes longer than half a second.
    """
    compiled = _compiled(pattern, where)
    find = compiled.fullmatch if whole else compiled.match
    try:
        return find(text, timeout=SECONDS) is not None
    except (TimeoutError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{where} holds a regular expression that takes too long to match: {_short(pattern)}.",
            "Write it without repetitions inside repetitions.",
        ) from error


@lru_cache(maxsize=256)
def _compiled(pattern: str, where: str) -> Any:
    import regex

    if len(pattern) > LONGEST:
        raise InputError(
            f"{where} holds a regular expression of {len(pattern):,} characters; {LONGEST:,} are the most."
        )
    try:
        return regex.compile(pattern, regex.VERSION0)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise InputError(f"{where} holds {_short(pattern)}, which is no regular expression ({error}).") from error


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else f"{pattern[:77]}...")
