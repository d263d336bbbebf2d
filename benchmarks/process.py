"""What a command costs: wall time, CPU seconds and peak memory of its process tree. Linux only."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from compressor.errors import RunError

SAMPLE_S = 0.25  # between two looks at the tree, each of which takes a millisecond or two of a core


@dataclass(frozen=True)
class Usage:
    """The cost of a finished process tree.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time of the process and of the children it waited for.
        peak_rss_bytes: the largest resident set of any one process, or the most that the tree held at a look (pages
            that its processes share counted once), whichever is more.
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
    looks = _Looks(process.pid)
    ended = os.pidfd_open(process.pid)
    try:
        looks.look()
        while not select.select([ended], [], [], SAMPLE_S)[0]:
            looks.look()
    finally:
        os.close(ended)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return looks.peak, status, usage.ru_utime + usage.ru_stime


class _Looks:
    """Looks at a tree again and again; `peak` is the most memory seen, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid, self._known = pid, {pid}
        self.peak = 0

    def look(self) -> None:
        found = {member.pid for member in _tree(self._pid)}
        # Between fork and exec a child shows its parent's memory as its own: it counts from the second look on.
        lasting, self._known = found & self._known, found
        # Not ru_maxrss of wait4: that is at least what the process which called fork had.
        alone = [_sizes(pid, "status").get("VmHWM", 0) for pid in lasting]
        together = sum(_sizes(pid, "smaps_rollup").get("Pss", 0) for pid in lasting) if len(lasting) > 1 else 0
        self.peak = max(self.peak, together, *alone, 0)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _sizes(pid: int, file: str) -> dict[str, int]:
    """The sizes in a file of /proc/PID, in bytes by name; none for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
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
