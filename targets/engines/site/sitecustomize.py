"""Run first by every interpreter of a runtime that llmc has started. Linux only; elsewhere it does nothing."""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # of x86-64


def _prepare() -> None:
    system = ctypes.CDLL(None, use_errno=True)
    if os.environ.get("LLMC_PARENT") == str(os.getppid()):
        system.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # llmc may be killed before it can end what it started
    if os.uname().machine == "x86_64":
        # Without it bfloat16 is an illegal instruction on processors with AMX; each process has to ask.
        system.syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)


if sys.platform == "linux":
    with contextlib.suppress(OSError, AttributeError):
        _prepare()
