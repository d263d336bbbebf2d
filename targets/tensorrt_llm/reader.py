"""Reads ModelOpt folders for TensorRT-LLM, from the text of their layout alone: bytes, numpy, no code of the writer.

int4: `X.weight` is uint8 [N/2, K]; of byte (r, k) the low nibble is the integer of output channel 2r and the high
nibble that of 2r + 1, each in two's complement. int8: `X.weight` is int8 [N, K]. fp8: it is e4m3 [N, K].
NVFP4: it is uint8 [N, K/2], input 2c in the low nibble of byte c: from the top a sign, two bits of exponent, one of
mantissa (e2m1). `X.weight_scale` is [N, K/g] for groups, [N] for channels, [] for a tensor; the weight is code times
scale. Those of NVFP4 are e4m3 [N, K/16], times `X.weight_scale_2` [].
`X.input_scale` [] divides the activation before it is rounded to fp8 or NVFP4; `X.pre_quant_scale` [K] multiplies it.
`k_proj.k_scale` and `v_proj.v_scale` [] belong to the fp8 key-value cache.
Sources: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py; the safetensors format description.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from compressor.checkpoint import Weight
from compressor.nvfp4 import BlockScales
from compressor.quantized import Activations, QuantizedWeight, Scheme

BFLOAT16, FP8 = "BF16", "F8_E4M3"
# safetensors' dtype to the numpy one of the same bytes; bfloat16 and fp8 have none and are read as their bits.
NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}
NUMPY_DTYPES |= {BFLOAT16: "<u2", FP8: "u1"}
SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
PARTS = ("weight", *SCALES)
CACHE_SCALES = {"k_proj.k_scale": "k_scale", "v_proj.v_scale": "v_scale"}  # as stored, and as a checkpoint has them


@dataclass(frozen=True)
class Header:
    """One tensor as its file's header describes it; `start` and `end` are bytes from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> np.ndarray:
        """The values, bfloat16 and fp8 as their bits."""
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


def decode_e2m1(packed: np.ndarray) -> np.ndarray:
    """uint8 [N, K/2] to the numbers of e2m1, float32 [N, K]: a sign, an exponent with a bias of 1, half a mantissa."""
    nibbles = np.stack((packed % 16, packed // 16), axis=-1).reshape(len(packed), -1)
    exponent, mantissa = (nibbles >> 1) & 3, (nibbles & 1).astype(np.float32) / 2
    magnitude = np.where(exponent == 0, mantissa, np.ldexp(1 + mantissa, exponent.astype(int) - 1))
    return np.copysign(magnitude, np.where(nibbles & 8, -1, 1)).astype(np.float32)


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of the folder by its parameter name, one at a time."""
    headers = _all_headers(root)
    for name, header in headers.items():
        layer, _, part = name.rpartition(".")
        stored = ".".join(name.split(".")[-2:])
        if stored in CACHE_SCALES:
            yield name.replace(stored, CACHE_SCALES[stored]), torch.from_numpy(header.numbers()).reshape(1)
        elif part == "weight" and f"{layer}.weight_scale" in headers:
            yield name, _quantized({part: headers[f"{layer}.{part}"] for part in PARTS if f"{layer}.{part}" in headers})
        elif part not in SCALES:
            yield name, _float_tensor(header)


def _all_headers(root: Path) -> dict[str, Header]:
    paths = sorted(root.glob("*.safetensors"))
    return {name: header for path in paths for name, header in read_headers(path).items()}


def _quantized(parts: Mapping[str, Header]) -> QuantizedWeight:
    weight = _matrix(parts)
    factors = parts["pre_quant_scale"].numbers() if "pre_quant_scale" in parts else np.ones(1, np.float32)
    if (factors == 1).all():
        return weight
    scheme = replace(weight.scheme, input_factors=True)
    return replace(weight, scheme=scheme, input_factors=torch.from_numpy(factors))


def _matrix(parts: Mapping[str, Header]) -> QuantizedWeight:
    weight, scale = parts["weight"], parts["weight_scale"]
    inputs = torch.from_numpy(parts["input_scale"].numbers()).reshape(()) if "input_scale" in parts else None
    if scale.dtype == FP8:
        return _nvfp4(weight, scale, torch.from_numpy(parts["weight_scale_2"].numbers()).reshape(()), inputs)
    scales, values = torch.from_numpy(scale.numbers()), weight.read()
    if weight.dtype == FP8:
        per_tensor, activations = not scales.dim(), Activations(8, "float", dynamic=inputs is None)
        scheme = Scheme(8, None, type="float", activations=activations, per_tensor=per_tensor)
        codes = torch.from_numpy(values).view(torch.float8_e4m3fn)
        return QuantizedWeight(codes, scales.expand(len(codes)).unsqueeze(1), None, scheme, inputs)
    if weight.dtype == "I8":
        return QuantizedWeight(torch.from_numpy(values), scales.unsqueeze(1), None, Scheme(8, None))
    codes = torch.from_numpy(unpack_nibbles(values))
    return QuantizedWeight(codes, scales, None, Scheme(4, codes.shape[1] // scales.shape[1]))


def _nvfp4(weight: Header, scale: Header, of_tensor: torch.Tensor, inputs: torch.Tensor | None) -> QuantizedWeight:
    codes = torch.from_numpy(decode_e2m1(weight.read())).to(torch.float8_e4m3fn)
    of_blocks = torch.from_numpy(scale.read()).view(torch.float8_e4m3fn)
    activations = None if inputs is None else Activations(4, "float", dynamic=False)
    scheme = Scheme(4, codes.shape[1] // of_blocks.shape[1], type="float", activations=activations)
    return QuantizedWeight(
        codes, of_blocks.float() * of_tensor, None, scheme, inputs, BlockScales(of_blocks, of_tensor)
    )


def _float_tensor(header: Header) -> torch.Tensor:
    values = torch.from_numpy(header.read())
    return values.view(torch.bfloat16) if header.dtype == BFLOAT16 else values
