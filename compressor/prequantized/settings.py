"""What the settings of all foreign layouts share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from compressor.architecture import read_config
from compressor.errors import InputError

GroupSize = Literal[-1, 16, 32, 64, 128, 256, 512, 1024]  # -1: one scale per output channel
OLD_CONFIG = "quantize_config.json"  # AutoGPTQ's, from before transformers knew the format


def width(group_size: GroupSize) -> int | None:
    """A group size as a `Scheme` has it."""
    return None if group_size == -1 else group_size


def read_settings(root: Path) -> dict[str, Any]:
    """The quantization settings of a model folder; empty when it has none.

    Raises:
        InputError: they are not JSON objects.
    """
    settings = read_config(root).get("quantization_config")
    old = root / OLD_CONFIG
    if settings is None and old.is_file():
        try:
            settings = {"quant_method": "gptq", **json.loads(old.read_bytes())}
        except (ValueError, TypeError) as error:
            raise InputError(f"{old} is not a JSON object.") from error
    if not isinstance(settings or {}, dict):
        raise InputError(f"The quantization_config of {root} is not a JSON object.")
    return dict(settings or {})
