"""What passes that change float weights refuse."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.errors import InputError
from compressor.quantized import Scheme


def refuse_quantized(schemes: Mapping[str, Scheme], why: str, hint: str) -> None:
    """Refuse a model that is quantized already; `why` ends the sentence that says so.

    Raises:
        InputError: it is.
    """
    if schemes:
        first = next(iter(schemes))
        raise InputError(f"{first} is already {schemes[first]}{why}.", hint)
