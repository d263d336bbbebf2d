"""What a command costs: wall time, CPU seconds and peak memory of its process tree. Linux only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from compressor.errors import RunError

SAMPLE_S = 0.1  # between two looks at the tree; each costs about a millisecond


@dataclass(frozen=True)
class Usage:
    """The cost of a finished process tree.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time of the process and of the children it waited for.
        peak_rss_bytes: the largest resident set: of any one process, or of the tree at any look, whichever is more.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Usage:
    """Run a command to its end; what it prints goes to `log`.

    Raises:
        RunError: it ended with another code than 0; the sentence holds the last line it printed.
    """
    start = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    try:
        peak, status, cpu = _watch(process)
    except BaseException:
        _kill(process)
        raise
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise RunError(f"It ended with code {code}: {_last_line(log)}", f"Its log is {log}.")
    return Usage(time.perf_counter() - start, cpu, peak)


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, int, float]:
    """Peak memory, wait status and CPU seconds of a process, once it has ended."""
    peak = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return peak, status, usage.ru_utime + usage.ru_stime
        peak = max(peak, _tree_rss(process.pid))
        time.sleep(SAMPLE_S)


def _tree_rss(pid: int) -> int:
    """Memory that the tree holds now, or the peak of its largest process."""
    sizes, peaks = [], []
    for member in _tree(pid):
        status = _status(member.pid)
        sizes.append(status.get("VmRSS", 0))
        # Not ru_maxrss from wait4: it is at least what the process that called fork had.
        peaks.append(status.get("VmHWM", 0))
    return max([sum(sizes), *peaks])


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes; none for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in parts}


def _kill(process: subprocess.Popen[bytes]) -> None:
    for member in reversed(_tree(process.pid)):
        member.kill()
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
