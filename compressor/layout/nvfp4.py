"""The layout of compressed-tensors for NVFP4, nvfp4-pack-quantized: tensors of one weight.

    weight_packed        uint8 [out_features, in_features / 2], the first code in the low bits
    weight_scale         float8_e4m3fn [out_features, in_features / 16]
    weight_global_scale  float32 [1], the reciprocal of the tensor scale
    input_global_scale   float32 [1], the reciprocal of the inputs' tensor scale; with rounded activations only

A code is four bits: its sign, and its place among the eight numbers of e2m1.
Source: vllm-project/compressed-tensors, compressors/nvfp4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from compressor.errors import InputError
from compressor.nvfp4 import BLOCK, NUMBERS, SCALE_DTYPE, BlockScales
from compressor.quantized import FP8, QuantizedWeight, Scheme

FORMAT = "nvfp4-pack-quantized"
PACKED, SCALE = "weight_packed", "weight_scale"
TENSOR_SCALE, INPUT_SCALE = "weight_global_scale", "input_global_scale"


def encode(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors that store `weight`, by their suffix."""
    scales = weight.block_scales
    tensors = {PACKED: pack_e2m1(weight.codes), SCALE: scales.codes, TENSOR_SCALE: _reciprocal(scales.tensor_scale)}
    if weight.input_scale is not None:
        tensors[INPUT_SCALE] = _reciprocal(weight.input_scale)
    return tensors


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
    """The weight that `encode` stored.

    A reciprocal is taken once on the way in and once on the way out. Where it is rounded, the number that is kept,
    and that runtimes multiply by, is still the same after any number of such ways.

    Raises:
        InputError: block scales are not fp8, or a scale of a tensor is not positive.
    """
    dtype = tensors[SCALE].dtype
    if dtype != SCALE_DTYPE:
        raise InputError(f"The block scales of an NVFP4 weight are stored as {dtype}; float8_e4m3fn can be read.")
    scales = BlockScales(tensors[SCALE], _scalar(tensors[TENSOR_SCALE]))
    input_scale = _scalar(tensors[INPUT_SCALE]) if INPUT_SCALE in tensors else None
    return QuantizedWeight(unpack_e2m1(tensors[PACKED]), scales.values(), None, scheme, input_scale, scales)


def stored_shapes(scheme: Scheme, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Suffix and shape of the tensors that store one weight."""
    rows, columns = shape
    shapes: dict[str, tuple[int, ...]] = {
        PACKED: (rows, columns // 2),
        SCALE: (rows, columns // BLOCK),
        TENSOR_SCALE: (1,),
    }
    return shapes if scheme.activations is None else shapes | {INPUT_SCALE: (1,)}


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Numbers of e2m1, float8_e4m3fn [rows, n], as uint8 [rows, n / 2], the first one in the low bits."""
    signs = codes.view(torch.uint8) >> 7
    places = torch.bucketize(codes.float().abs(), torch.tensor(NUMBERS)).to(torch.uint8)
    nibbles = places | (signs << 3)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_e2m1`."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
    table = torch.tensor([*NUMBERS, *(-number for number in NUMBERS)]).to(FP8).view(torch.uint8)
    return table[nibbles.int()].view(FP8)


def _reciprocal(scale: torch.Tensor) -> torch.Tensor:
    return (1 / scale.float()).reshape(1)


def _scalar(stored: torch.Tensor) -> torch.Tensor:
    if not bool((stored > 0).all()):
        raise InputError("The scale of an NVFP4 tensor is not positive.", "The folder is damaged.")
    return 1 / stored.float().reshape(())
