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


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence fragment that helps with a misspelled name: the nearest one, or the list."""
    names = sorted(known)
    if not names:
        return "there are none"
    close = difflib.get_close_matches(name, names, n=len(names), cutoff=0.5)
    return f"did you mean {_likest(name, close)!r}?" if close else "known: " + ", ".join(names)


def _likest(name: str, names: Iterable[str]) -> str:
    """The name that is most like another one; letters that changed places are a slip of the fingers."""

    def likeness(other: str) -> float:
        return sum(
            difflib.SequenceMatcher(None, a, b).ratio() for a, b in ((name, other), (sorted(name), sorted(other)))
        )

    return max(names, key=likeness)
