"""What all passes that prune refuse."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.errors import InputError
from compressor.quantized import Scheme


def refuse_quantized(schemes: Mapping[str, Scheme]) -> None:
    """Refuse a model that is quantized already.

    Raises:
        InputError: it is.
    """
    if schemes:
        first = next(iter(schemes))
        raise InputError(f"{first} is already {schemes[first]}.", "Prune first, and quantize what is left.")


def refuse_cache_scales(present: bool) -> bool:
    """False: a pruned model has no scales of an fp8 key-value cache.

    Raises:
        InputError: they are there, and would not fit any more.
    """
    if present:
        raise InputError("The model has scales of an fp8 key-value cache.", "Prune first, and calibrate it then.")
    return False
