"""Errors a user is meant to read: one sentence, a hint, and the exit code that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LlmcError(Exception):
    """An expected failure. `str(error)` is one sentence; `hint` says what to do about it."""

    exit_code = 4

    def __init__(self, sentence: str, hint: str | None = None) -> None:
        super().__init__(sentence)
        self.hint = hint


class InputError(LlmcError):
    """The request or the data given cannot be used as it is (exit code 2)."""

    exit_code = 2


class TooFewWindows(InputError):  # noqa: N818 -- reads better where it is caught
    """A text holds only so many `windows` of the length that was asked for, and more were asked for (exit code 2)."""

    def __init__(self, sentence: str, hint: str, windows: int) -> None:
        super().__init__(sentence, hint)
        self.windows = windows


class Interrupted(LlmcError):  # noqa: N818 -- it is none of the program's
    """Ctrl-C or SIGTERM, where another command than the same one goes on (exit code 4)."""

    def __init__(self, hint: str | None) -> None:
        super().__init__("Interrupted. Nothing half-written was left behind.", hint)


class RunError(LlmcError):
    """The run broke although its input was accepted (exit code 4)."""


class MissingExtra(InputError):  # noqa: N818 -- reads better where it is raised
    """A package that this request needs is not installed (exit code 2)."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed.",
            f"pip install 'llmc-compiler[{extra}]'",
        )


ALIKE = 1.3  # of the 2 that equal names have, from which one may be a slip for the other
BREAKS = (RunError, RuntimeError, MemoryError)  # what a runtime raises that breaks while it is asked


@contextmanager
def panics_told() -> Iterator[None]:
    """Tell a panic of an extension in Rust as a RuntimeError: it is no Exception, and nobody expects it.

    Raises:
        RuntimeError: there was one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


def first_line(error: BaseException) -> str:
    """What an error says, as the end of a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def listed(known: Iterable[str]) -> str:
    """A sentence fragment with every name that there is."""
    names = sorted(known)
    return "known: " + ", ".join(names) if names else "there are none"


def nearest(name: str, known: Iterable[str], meant: Iterable[str] = ()) -> str:
    """A sentence fragment that helps with a wrong name: what is known to be meant by it, the names that begin with it,
    the one that looks like it, or the list.
    """
    names = sorted(known)
    wanted = [one for one in meant if one in names] or [one for one in names if len(name) > 1 and one.startswith(name)]
    if not wanted and (alike := max(names, key=lambda other: _likeness(name, other), default=None)):
        wanted = [alike] if _likeness(name, alike) >= ALIKE else []
    return f"did you mean {_either(wanted)}?" if wanted else listed(names)


def _either(names: list[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def _likeness(name: str, other: str) -> float:
    """From 0 to 2; letters that changed places are a slip of the fingers, and count half."""
    pairs = ((name, other), (sorted(name), sorted(other)))
    return sum(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
