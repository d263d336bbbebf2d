"""Peak resident memory of a piece of work."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


class PeakMemory:
    """Context manager; `bytes` is the process's peak resident set while it was open.

    Linux can reset the peak, so that it belongs to this piece of work alone. Elsewhere the peak of the
    whole process is all there is, and `exact` is False.
    """

    bytes: int = 0
    exact: bool = False

    def __enter__(self) -> PeakMemory:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            self.exact = True
        except OSError:
            self.exact = False
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = _linux_peak() if self.exact else _process_peak()


def _linux_peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _process_peak()


def _process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
