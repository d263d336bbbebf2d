"""What all passes that prune refuse."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.errors import InputError
from compressor.quantized import Scheme
from passes.refusals import refuse_quantized


def refuse_rounded(schemes: Mapping[str, Scheme]) -> None:
    """Refuse a model that is quantized already.

    Raises:
        InputError: it is.
    """
    refuse_quantized(schemes, "", "Prune first, and quantize what is left.")


def refuse_cache_scales(present: bool) -> bool:
    """False: a pruned model has no scales of an fp8 key-value cache.

    Raises:
        InputError: they are there, and would not fit any more.
    """
    if present:
        raise InputError("The model has scales of an fp8 key-value cache.", "Prune first, and calibrate it then.")
    return False
