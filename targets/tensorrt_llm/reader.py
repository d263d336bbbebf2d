"""Reads a ModelOpt W4A16_AWQ folder, from the text of its layout alone: bytes, numpy, no code of the writing side.

A packed `X.weight` is uint8 [N/2, K]; of byte (r, k) the low nibble is the integer of output channel 2r and the high
nibble that of 2r + 1, each in two's complement. `X.weight_scale` is [N, K/g]; the weight is integer times scale.
`X.pre_quant_scale` [K], where present, multiplies the activation.
Sources: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py; the safetensors format description.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compressor.checkpoint import Weight
from compressor.quantized import QuantizedWeight, Scheme

# safetensors' dtype to the numpy one of the same bytes; bfloat16 has none and is read as its bits.
NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}
BFLOAT16 = "BF16"


@dataclass(frozen=True)
class Header:
    """One tensor as its file's header describes it; `start` and `end` are bytes from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> np.ndarray:
        """The values, bfloat16 as its uint16 bits."""
        kind = np.dtype(NUMPY_DTYPES[self.dtype])
        count = (self.end - self.start) // kind.itemsize
        return np.fromfile(self.path, kind, count, offset=self.start).reshape(self.shape)

    def numbers(self) -> np.ndarray:
        """The values as float32."""
        values = self.read()
        if self.dtype == BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


def read_headers(path: Path) -> dict[str, Header]:
    """Names and headers of a safetensors file.

    Raises:
        ValueError: the file is not safetensors, or shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise ValueError(f"{path.name} is not a safetensors file")
        raw = json.loads(file.read(length))
    base = 8 + length
    headers = {}
    for name, entry in raw.items():
        if name == "__metadata__":
            continue
        start, end = (base + offset for offset in entry["data_offsets"])
        if end > size:
            raise ValueError(f"{path.name} is cut short")
        headers[name] = Header(path, entry["dtype"], tuple(entry["shape"]), start, end)
    return headers


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [N/2, K] to the int8 integers [N, K]."""
    integers = np.empty((2 * packed.shape[0], packed.shape[1]), np.int8)
    for parity, nibbles in enumerate((packed % 16, packed // 16)):
        integers[parity::2] = (nibbles ^ 8).view(np.int8) - 8  # the sign bit flipped, then taken off
    return integers


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of the folder by its parameter name, one at a time; activation scales are read apart."""
    headers = _all_headers(root)
    for name, header in headers.items():
        layer, _, part = name.rpartition(".")
        if part in ("weight_scale", "pre_quant_scale"):
            continue
        if part == "weight" and f"{layer}.weight_scale" in headers:
            yield name, _quantized(header, headers[f"{layer}.weight_scale"])
        else:
            yield name, _float_tensor(header)


def read_activation_scales(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Layers whose inputs are scaled, and by what: float32 [in_features]."""
    for name, header in _all_headers(root).items():
        if name.endswith(".pre_quant_scale"):
            yield name.removesuffix(".pre_quant_scale"), header.numbers()


def _all_headers(root: Path) -> dict[str, Header]:
    paths = sorted(root.glob("*.safetensors"))
    return {name: header for path in paths for name, header in read_headers(path).items()}


def _quantized(packed: Header, scale: Header) -> QuantizedWeight:
    codes, scales = torch.from_numpy(unpack_nibbles(packed.read())), torch.from_numpy(scale.numbers())
    return QuantizedWeight(codes, scales, None, Scheme(4, codes.shape[1] // scales.shape[1]))


def _float_tensor(header: Header) -> torch.Tensor:
    values = torch.from_numpy(header.read())
    return values.view(torch.bfloat16) if header.dtype == BFLOAT16 else values
