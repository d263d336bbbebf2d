"""What the runtimes' scripts share: an open model takes a turn, a prompt and some tokens, whenever it is asked to."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


class Engine(Protocol):
    """A model opened in a runtime, which remembers the text so far; all tokens are the most likely ones."""

    def start(self, prompt: list[int]) -> None:
        """Forget what was before, read the prompt, and choose the first token."""
        ...

    def step(self) -> None:
        """Choose one token more."""
        ...


Open = Callable[[Path, int, int], Engine]  # artifact, threads, tokens of the longest text
Judge = Callable[["np.ndarray"], "np.ndarray"]  # int64 [length] to float32 [length, vocab_size]
AddVerb = Callable[[Any], None]


def main(open_engine: Open, judge: Callable[[Path, int], Judge] | None = None, *others: AddVerb) -> None:
    """The command line of a runtime's script.

    Args:
        judge: opens an artifact for texts of so many tokens, for the verb `logits`.
        others: add verbs of the script's own, whose parsers have `run` as a default.
    """
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_turns(verbs, open_engine)
    if judge is not None:
        _add_logits(verbs, judge)
    for add in others:
        add(verbs)
    given = parser.parse_args()
    given.run(given)


def _add_turns(verbs: Any, open_engine: Open) -> None:
    parser = verbs.add_parser("turns")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("prompt", type=json.loads, help="JSON list of token ids")
    parser.add_argument("steps", type=int)
    parser.add_argument("clock", choices=["perf_counter", "process_time"])
    parser.set_defaults(run=lambda given: _serve(given, open_engine))


def _add_logits(verbs: Any, judge: Callable[[Path, int], Judge]) -> None:
    parser = verbs.add_parser("logits")
    for name in ("artifact", "tokens", "out"):
        parser.add_argument(name, type=Path)
    parser.set_defaults(run=lambda given: _judge(given, judge))


def _judge(given: argparse.Namespace, judge: Callable[[Path, int], Judge]) -> None:
    """Logits of int64 [windows, length], a float32 .npy file a window in the folder `out`."""
    import numpy as np

    windows = np.load(given.tokens)
    logits = judge(given.artifact, windows.shape[1])
    for number, window in enumerate(windows):
        np.save(given.out / f"{number}.npy", logits(window))


def _serve(given: argparse.Namespace, open_engine: Open) -> None:
    """Say `ready`; then answer each line of standard input with a turn, a line of JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.threads :])
    engine = open_engine(given.artifact, given.threads, len(given.prompt) + given.steps + 1)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(_turn(engine, given)), flush=True)


def _turn(engine: Engine, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token and of each one after it; peak memory of the process so far."""
    clock = getattr(time, given.clock)
    marks = [clock()]
    engine.start(given.prompt)
    marks.append(clock())
    for _ in range(given.steps):
        engine.step()
        marks.append(clock())
    first, *others = (end - start for start, end in itertools.pairwise(marks))
    return {"first": first, "others": others, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """VmHWM: not ru_maxrss, which is at least what the process that forked this one had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
