"""Reads NF4 folders through the bitsandbytes library, not through our layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing.stored import read_tensor, tensor_holders

READER = "bitsandbytes"
STATE = ".quant_state.bitsandbytes__nf4"


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of a folder by its parameter name, one at a time.

    Raises:
        RunError: the library dequantizes a weight to other values than its codes and scales mean.
    """
    holders = tensor_holders(root)
    quantized = {name.removesuffix(STATE) for name in holders if name.endswith(STATE)}
    for name in sorted(holders):
        layer, _, part = name.partition(".weight.")
        if name in quantized:
            parts = {part: read_tensor(part, holders) for part in holders if part.startswith(f"{name}.")}
            yield name, _restored(name, read_tensor(name, holders), parts)
        elif not part or f"{layer}.weight" not in quantized:
            yield name, read_tensor(name, holders)


def _restored(name: str, packed: torch.Tensor, parts: dict[str, torch.Tensor]) -> QuantizedWeight:
    with redirect_stderr(StringIO()):  # it says when it finds no kernels on the hub
        from bitsandbytes import functional

    state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
    state.dtype = torch.float32
    scales = state.absmax
    if state.nested:
        scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
    codes = _codes(functional, packed, state)
    scheme = Scheme(4, state.blocksize, type=state.quant_type, double_quant=state.nested)
    weight = QuantizedWeight(codes, scales.view(len(codes), -1), None, scheme)
    if not torch.equal(functional.dequantize_4bit(packed, state), weight.dequantize()):
        raise RunError(f"{READER} dequantizes {name} to other values than its codes and scales mean.")
    return weight


def _codes(functional: Any, packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Indices into the table, uint8 [out_features, in_features]: with scales of one, the library gives table values."""
    ones = torch.ones(packed.numel() * 2 // state.blocksize)
    values = functional.dequantize_4bit(
        packed, functional.QuantState(ones, state.shape, state.code, state.blocksize, "nf4", torch.float32)
    )
    return torch.bucketize(values, state.code).to(torch.uint8)
