"""Templates that come from files are programs: they have a time to run, and a size that their text may have."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0  # of one rendering, which takes a millisecond
LONGEST = 10_000_000  # characters
TEMPLATE = "<template>"  # what Jinja calls the file of a template that has none


class LimitError(SecurityError):
    """A template ran too long, or makes too much; `jinja2.TemplateError` covers it."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no operator makes something huge."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str | bytes)):
            raise LimitError(f"the operator {operator} is not for templates of tasks")
        if operator == "*" and _times(left, right) > LONGEST:
            raise LimitError(f"it repeats something up to more than {LONGEST:,} characters")
        return super().call_binop(context, operator, left, right)


@contextmanager
def limited() -> Iterator[None]:
    """Stop a template that runs within for too long; other code within it is not looked at.

    Raises:
        LimitError: it took more than two seconds.
    """
    end, before = time.monotonic() + SECONDS, sys.gettrace()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise LimitError(f"it runs for more than {SECONDS:g} s")
        return look

    sys.settrace(lambda frame, event, argument: look if frame.f_code.co_filename == TEMPLATE else None)
    try:
        yield
    finally:
        sys.settrace(before)


def checked(text: str) -> str:
    """A rendered text, of a size that a model can be asked.

    Raises:
        LimitError: it is longer.
    """
    if len(text) > LONGEST:
        raise LimitError(f"it makes more than {LONGEST:,} characters")
    return text


def _times(left: Any, right: Any) -> int:
    sized, number = (left, right) if hasattr(left, "__len__") else (right, left)
    if isinstance(number, int) and hasattr(sized, "__len__"):
        return len(sized) * max(0, number)
    return 0
