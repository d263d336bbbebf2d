"""The layout of bitsandbytes for NF4, as transformers saves and loads it: tensors of one weight, and config.json.

    weight                                  uint8 [out_features * in_features / 2, 1], the first code in the high bits
    weight.absmax                           scales: float32 [scales], or their uint8 codes when double-quantized
    weight.quant_map                        the table of NF4, float32 [16]
    weight.quant_state.bitsandbytes__nf4    JSON as bytes: block size, shape, dtype to compute in, offset of the scales
    weight.nested_absmax, .nested_quant_map double-quantized scales: float32 [scales / 256], and their table [256]

Source: bitsandbytes 0.50, functional.QuantState; transformers 5.17, quantizers/quantizer_bnb_4bit.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from compressor import nf4
from compressor.errors import InputError
from compressor.json_file import parse_object
from compressor.nf4 import SCALES_PER_BLOCK, TABLE, RoundedScales
from compressor.patterns import matches
from compressor.quantized import QuantizedWeight, Scheme

METHOD = "bitsandbytes"
GROUP_SIZE = 64  # transformers knows no other

CODES, SCALES, QUANT_MAP = "weight", "weight.absmax", "weight.quant_map"
STATE = "weight.quant_state.bitsandbytes__nf4"
BLOCK_SCALES, SCALE_MAP = "weight.nested_absmax", "weight.nested_quant_map"


def encode(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors that store `weight`, by their suffix; `dtype` is what the model computes in."""
    codes = weight.codes.flatten()
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": GROUP_SIZE,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(weight.codes.shape),
    }
    tensors = {CODES: ((codes[0::2] << 4) | codes[1::2]).unsqueeze(1), QUANT_MAP: TABLE.clone()}
    rounded = weight.rounded_scales
    if rounded is None:
        tensors[SCALES] = weight.scales.flatten()
    else:
        assert isinstance(rounded, RoundedScales)
        tensors |= {SCALES: rounded.codes.flatten(), BLOCK_SCALES: rounded.block_scales, SCALE_MAP: rounded.table}
        state |= {
            "nested_blocksize": SCALES_PER_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(rounded.offset),
        }
    tensors[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
    """The weight that `encode` stored.

    Raises:
        InputError: it is stored otherwise than config.json says, or with a table of its own.
    """
    state = _state(tensors[STATE])
    if state.get("blocksize") != GROUP_SIZE or state.get("nested_blocksize", SCALES_PER_BLOCK) != SCALES_PER_BLOCK:
        raise InputError(f"An NF4 weight is stored in blocks of {state.get('blocksize')}; {GROUP_SIZE} can be read.")
    if not torch.equal(tensors[QUANT_MAP].float(), TABLE):
        raise InputError("An NF4 weight is stored with a table of its own, which cannot be read.")
    packed, shape = tensors[CODES].flatten(), tuple(state["shape"])
    is_double = tensors[SCALES].dtype == torch.uint8
    if is_double != scheme.double_quant or math.prod(shape) != 2 * len(packed):
        raise InputError("An NF4 weight is stored otherwise than config.json says.", "The folder is damaged.")
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).view(shape)
    scales = tensors[SCALES].view(shape[0], -1)
    if not scheme.double_quant:
        return QuantizedWeight(codes, scales, None, scheme)
    offset = torch.tensor(float(state["nested_offset"]))
    rounded = RoundedScales(scales, tensors[SCALE_MAP].float(), tensors[BLOCK_SCALES].float(), offset)
    return QuantizedWeight(codes, rounded.values(), None, scheme, rounded_scales=rounded)


def stored_shapes(scheme: Scheme, shape: tuple[int, int]) -> dict[str, tuple[int, ...] | None]:
    """Suffix and shape of the tensors that store one weight; None where it depends on the content."""
    rows, columns = shape
    scales = rows * (columns // scheme.group_width(columns))
    shapes: dict[str, tuple[int, ...] | None] = {
        CODES: (rows * columns // 2, 1),
        SCALES: (scales,),
        QUANT_MAP: (len(nf4.TABLE),),
        STATE: None,
    }
    if scheme.double_quant:
        shapes |= {BLOCK_SCALES: (-(-scales // SCALES_PER_BLOCK),), SCALE_MAP: (256,)}
    return shapes


def quantization_config(schemes: Mapping[str, Scheme], linears: Iterable[str], dtype: torch.dtype) -> dict[str, Any]:
    """The `quantization_config` of config.json; `dtype` is what the model computes in."""
    return {
        "quant_method": METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": next(iter(schemes.values())).double_quant,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        # Not only what is 8-bit, as the name says: transformers goes by it for 4 bits too.
        "llm_int8_skip_modules": [name for name in linears if name not in schemes],
    }


def read_schemes(quantization: Mapping[str, Any], linears: Iterable[str]) -> dict[str, Scheme]:
    """Which of `linears` are NF4 according to a `quantization_config` with the method bitsandbytes.

    Raises:
        InputError: it is not NF4 in bytes.
    """
    kind = "8-bit" if quantization.get("load_in_8bit") else quantization.get("bnb_4bit_quant_type", "fp4")
    storage = quantization.get("bnb_4bit_quant_storage") or "uint8"
    if kind != "nf4" or storage != "uint8":
        raise InputError(
            f"The model is quantized by bitsandbytes ({kind}, stored as {storage}), of which nf4 in uint8 can be read.",
            "Start from the float checkpoint.",
        )
    skipped = quantization.get("llm_int8_skip_modules")
    skipped = ["lm_head"] if skipped is None else skipped
    scheme = Scheme(4, GROUP_SIZE, type="nf4", double_quant=bool(quantization.get("bnb_4bit_use_double_quant")))
    return {name: scheme for name in linears if not any(_matches(name, pattern) for pattern in skipped)}


def _matches(name: str, pattern: str) -> bool:
    """Whether transformers takes a pattern to mean this module: a regular expression at its start, or its ending."""
    return matches(pattern, name, "llm_int8_skip_modules") or name.endswith(pattern)


def _state(packed: torch.Tensor) -> dict[str, Any]:
    state = parse_object(bytes(packed.tolist()), "The quantization state of an NF4 weight", "The folder is damaged.")
    if not isinstance(state.get("shape"), list):
        raise InputError("The quantization state of an NF4 weight gives no shape.", "The folder is damaged.")
    return state
