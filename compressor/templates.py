"""Templates that come from files are programs: they have a time to run, memory, and a size that their text may have."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from compressor.errors import InputError

SECONDS = 2.0  # of one rendering, which takes a millisecond
LONGEST = 10_000_000  # characters
ROOM = 1 << 30  # bytes that a rendering may take beyond what the process has
TEMPLATE = "<template>"  # what Jinja calls the file of a template that has none


_LIMITING = threading.RLock()  # the limits are the process's

if sys.platform == "linux":
    import resource


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


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: object, **options: Any) -> str:
    """A chat as the text that a tokenizer's own chat template makes of it.

    Args:
        where: the chat comes from, for the error.
        options: of the tokenizer's `apply_chat_template`.

    Raises:
        InputError: the template rejects the messages, or goes beyond its limits.
    """
    try:
        templates = tokenizer.chat_template
        for template in templates.values() if isinstance(templates, dict) else [templates]:
            _refuse_powers(template)
        with limited():
            return checked(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates are programs: they raise what they like
        raise InputError(f"{where}: the tokenizer's chat template rejects the messages ({error}).") from error


@lru_cache(maxsize=16)
def _refuse_powers(template: str) -> None:
    """Powers of numbers run on within one operation, even while a template is compiled, where no limit reaches them."""
    try:
        tokens = [value for _, kind, value in Environment().lex(template) if kind != "whitespace"]
    except TemplateSyntaxError:  # whoever compiles it says so
        return
    if any(value == "**" and before not in "(," for before, value in pairwise(tokens)):
        raise LimitError("the operator ** is not for chat templates")


@contextmanager
def limited() -> Iterator[None]:
    """Stop a template that runs within for too long, or takes too much; other code within it is not looked at.

    Raises:
        LimitError: it took more than two seconds, or more than 1 GiB.
    """
    with _LIMITING, _memory_limited(), _time_limited():
        yield


@contextmanager
def _memory_limited() -> Iterator[None]:
    """Where the operating system can limit what a process takes: Linux."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
    try:
        yield
    except MemoryError as error:
        raise LimitError(f"it takes more than {ROOM >> 30} GiB of memory") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _time_limited() -> Iterator[None]:
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
