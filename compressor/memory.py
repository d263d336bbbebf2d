"""What becomes of memory that was freed."""

from __future__ import annotations

import ctypes

# For mallopt (malloc.h). Batches of activations are smaller than this; weights and moments beyond go back at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
REUSED_BYTES, KEPT_BYTES = 32 << 20, 128 << 20


def reuse() -> None:
    """Let freed tensors of some megabytes be used again: fresh pages for each cost as much as a norm. Linux only."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, REUSED_BYTES)
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Let go of what the C library keeps of freed tensors: with blocks of many megabytes, that is a lot. Linux only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
