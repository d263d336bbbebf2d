"""Reads AutoAWQ GEMM folders through the converter of the compressed-tensors library, not through our layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing.stored import read_tensor, tensor_holders

READER = "compressed-tensors (its AutoAWQ converter)"
PARTS = ("qweight", "qzeros", "scales")
ROWS_AT_ONCE = 256  # the library unpacks to eight bytes an integer


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of a folder by its parameter name, one at a time; all quantized ones have zero points.

    Raises:
        RunError: the folder says that it is stored in another way.
    """
    settings = json.loads((root / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    if (settings["bits"], settings["version"], settings["zero_point"]) != (4, "gemm", True):
        raise RunError("The folder's config.json does not say four bits with zero points as gemm.")
    scheme, holders = Scheme(4, settings["group_size"], symmetric=False), tensor_holders(root)
    for name in sorted(holders):
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            yield f"{layer}.weight", _linear(layer, holders, scheme)
        elif part not in PARTS or f"{layer}.qweight" not in holders:
            yield name, read_tensor(name, holders)


def _linear(layer: str, holders: Mapping[str, Path], scheme: Scheme) -> QuantizedWeight:
    qweight, qzeros, scales = (read_tensor(f"{layer}.{part}", holders) for part in PARTS)
    return QuantizedWeight(_signed(qweight), scales.T.contiguous().float(), _signed(qzeros), scheme)


def _signed(words: torch.Tensor) -> torch.Tensor:
    """int32 words [rows, out_features / 8] to integers around zero, int8 [out_features, rows]."""
    return torch.cat([_unpacked(part) for part in words.split(ROWS_AT_ONCE)]).T.contiguous()


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """int32 words [rows, out_features / 8] to integers around zero, int8 [rows, out_features]."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    integers, _ = AutoAWQConverter.unpack_awq(words, None, 4)
    in_order, _ = AutoAWQConverter.reverse_awq_order(integers, None, 4)
    return (in_order & 15) - 8
