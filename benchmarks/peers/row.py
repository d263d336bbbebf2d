"""What the quantizers' scripts share: their command line, and a note of when importing was over."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """One row of the comparison.

    Attributes:
        model: Hugging Face folder to quantize.
        tokens: .npy file of the calibration tokens, int64 [samples, length].
        out: folder to make.
        options: what the row's table entry says.
    """

    model: Path
    tokens: Path
    out: Path
    options: dict[str, Any]


def main(packages: Sequence[str], load: Callable[[], Callable[[Task], None]]) -> None:
    """Answer `versions`, or import with `load`, note what that took, and quantize with what it returns."""
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("versions")
    quantizing = verbs.add_parser("quantize")
    for name in ("model", "tokens", "out", "note"):
        quantizing.add_argument(name, type=Path)
    quantizing.add_argument("options", type=json.loads)
    given = parser.parse_args()
    if given.verb == "versions":
        print(", ".join(f"{name} {version(name)}" for name in packages))
        return
    quantize = load()
    _note_start(given.note)
    quantize(Task(given.model, given.tokens, given.out, given.options))


def _note_start(path: Path) -> None:
    """Write down the time of day, and the CPU seconds and peak memory of this process up to now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    path.write_text(json.dumps({"time": time.time(), "cpu_s": cpu, "peak_rss_bytes": _peak_rss()}))


def _peak_rss() -> int:
    # Not ru_maxrss: that one is at least what the process which started this one had.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
