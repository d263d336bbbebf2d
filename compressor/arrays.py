"""Arrays that are written through memory maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

ZEROS = bytes(1 << 20)


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file of zeros, mapped to be written to. Its room on the disk is taken first: where a disk is full, writing
    to a map of a file with holes ends the process.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        _take_room(file.fileno(), array.offset, path.stat().st_size)
    return array


def _take_room(descriptor: int, start: int, end: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, end)
        return
    os.lseek(descriptor, start, os.SEEK_SET)
    while start < end:
        start += os.write(descriptor, ZEROS[: end - start])
