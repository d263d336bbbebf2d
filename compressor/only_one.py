"""One process at a time writes into a folder: the operating system's lock, which ends with the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compressor.errors import InputError

LOCK_FILE = ".llmc-lock"


@contextmanager
def only_one(folder: Path, told: Path | None = None) -> Iterator[None]:
    """Be the only one that writes into an existing folder, until the body ends. The file that is locked goes then.

    Args:
        told: what the sentence calls it.

    Raises:
        InputError: another process writes into it.
    """
    path = folder / LOCK_FILE
    descriptor = _open_locked(path, told or folder)
    try:
        yield
    finally:
        if os.name == "nt":  # where an open file cannot be removed
            os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        if os.name != "nt":
            os.close(descriptor)


def _open_locked(path: Path, told: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"Another llmc is at work in {told}.", "Wait until it has ended, or take another folder."
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its holder removed the file between the two


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
