"""auto-round's own format: the layouts of GPTQ and AWQ, under another method and with settings of its own.

Source: auto-round 0.15, export/export_to_autoround/export.py and inference/backend.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compressor.errors import InputError
from compressor.prequantized.awq import AwqLayout
from compressor.prequantized.gptq import GptqLayout

METHOD = "auto-round"
GPTQ = {"auto_round:auto_gptq": "gptq", "auto_gptq": "gptq", "auto_round:gptqmodel": "gptq_v2", "auto_round": "gptq_v2"}
AWQ = ("auto_round:auto_awq", "auto_awq")


def auto_round(config: Mapping[str, Any]) -> GptqLayout | AwqLayout:
    """The layout that a `quantization_config` of auto-round describes.

    Raises:
        InputError: a variant that cannot be read.
    """
    packing = config.get("packing_format", "auto_round:auto_gptq")
    _check_kind(config, packing)
    if packing in AWQ:
        settings = {"bits": config.get("bits"), "zero_point": not config.get("sym", True)}
        return AwqLayout.parse({**settings, "group_size": config.get("group_size", 128)})
    return GptqLayout.parse(
        {
            "checkpoint_format": GPTQ[packing],
            "bits": config.get("bits"),
            "group_size": config.get("group_size", 128),
            "sym": config.get("sym", True),
            "dynamic": {_pattern(name): rule for name, rule in (config.get("extra_config") or {}).items()},
        }
    )


def _check_kind(config: Mapping[str, Any], packing: Any) -> None:
    kind, inputs = config.get("data_type", "int"), config.get("act_bits") or 16
    if packing not in (*GPTQ, *AWQ) or kind != "int" or inputs < 16:
        raise InputError(
            f"The auto-round folder is packed as {packing}, {kind} with {inputs}-bit inputs, which cannot be read.",
            "Integers packed as auto_gptq or auto_awq can; export with --format auto_gptq.",
        )
    turned = next((key for key, value in config.items() if "rotation" in key and value), None)
    if turned is not None:
        raise InputError(f"The auto-round folder has a {turned}, which changes what its layers compute.")


def _pattern(name: str) -> str:
    """A layer's whole name as a rule of GPTQ; auto-round's regular expressions are rules already."""
    return f"{re.escape(name)}$" if re.fullmatch(r"[\w.]+", name) else name
