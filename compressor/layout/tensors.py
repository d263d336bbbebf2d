"""The tensors that store one quantized weight, in three compressed-tensors formats; NVFP4 and NF4 have modules of
their own.

    pack-quantized    weight-only int4 and int8: `weight_packed`, `weight_scale`, `weight_shape`, `weight_zero_point`
    int-quantized     int8 with rounded activations, and int4 and int8 embeddings, one code a byte: `weight` int8,
                      `weight_scale`, `weight_zero_point` int8
    float-quantized   fp8, activations rounded or not: `weight` float8_e4m3fn, `weight_scale`

Packed weights lie along the input features, packed zero points along the output features. Scales and zero points are
[out_features, groups], or [1] where a tensor has one; static activations add `input_scale` [1].
Source: vllm-project/compressed-tensors, compressors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from compressor.layout import extensions, nf4, nvfp4
from compressor.layout.words import pack_words, unpack_words, words_of
from compressor.low_rank import LowRank
from compressor.quantized import FP8, QuantizedWeight, Scheme

PACK, INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
LOW_RANK = "low-rank"  # no matrix, factors alone: see extensions.py
PACKED, SHAPE, ZERO_POINT = "weight_packed", "weight_shape", "weight_zero_point"
PLAIN, SCALE, INPUT_SCALE = "weight", "weight_scale", "input_scale"


def storage_format(scheme: Scheme) -> str:
    """The compressed-tensors format in which weights of this scheme are stored."""
    if scheme.type == "low-rank":
        return LOW_RANK
    if scheme.type == "float":
        return FLOAT if scheme.bits == 8 else nvfp4.FORMAT
    # transformers initializes and ties embeddings by their `weight`, so that must be what holds the codes.
    return INT if scheme.activations or scheme.table else PACK


def encode(weight: QuantizedWeight | LowRank, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors that store `weight`, by their suffix; scales in the model's `dtype` where that holds them exactly."""
    if isinstance(weight, LowRank):
        return extensions.encode_low_rank(weight)
    if weight.scheme.extensions:
        return encode(weight.core, dtype) | extensions.encode(weight)
    if weight.scheme.type == "nf4":
        return nf4.encode(weight, dtype)
    if weight.scheme.kind == "nvfp4":
        return nvfp4.encode(weight)
    tensors = _packed(weight) if storage_format(weight.scheme) == PACK else _plain(weight)
    scales = weight.scales[0] if weight.scheme.per_tensor else weight.scales
    tensors[SCALE] = narrowed(scales, dtype)
    if weight.input_scale is not None:
        # Layers that read the same input may share the very tensor, which a shard does not store twice.
        tensors[INPUT_SCALE] = narrowed(weight.input_scale.reshape(1), dtype).clone()
    return tensors


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight | LowRank:
    """The weight that `encode` stored."""
    if scheme.type == "low-rank":
        return extensions.decode_low_rank(tensors)
    return _decode(tensors, scheme)


def _decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
    if scheme.extensions:
        return extensions.decode(_decode(tensors, scheme.core), tensors, scheme)
    if scheme.type == "nf4":
        return nf4.decode(tensors, scheme)
    if scheme.kind == "nvfp4":
        return nvfp4.decode(tensors, scheme)
    scales = tensors[SCALE].float()
    input_scale = tensors[INPUT_SCALE].float().reshape(()) if _has_input_scale(scheme) else None
    if storage_format(scheme) != PACK:
        if scheme.per_tensor:
            scales = scales.repeat(len(tensors[PLAIN]), 1)
        return QuantizedWeight(tensors[PLAIN], scales, tensors.get(ZERO_POINT), scheme, input_scale)
    rows, columns = tensors[SHAPE].tolist()
    zero_points = None
    if not scheme.symmetric:
        packed = tensors[ZERO_POINT].T.contiguous()
        zero_points = unpack_words(packed, scheme.bits, rows).T.contiguous()
    return QuantizedWeight(unpack_words(tensors[PACKED], scheme.bits, columns), scales, zero_points, scheme)


def stored_shapes(scheme: Scheme, shape: tuple[int, int]) -> Mapping[str, tuple[int, ...] | None]:
    """Suffix and shape of the tensors that store one weight [out_features, in_features] of this scheme.

    None stands for a shape that depends on the content.
    """
    if scheme.type == "low-rank":
        return extensions.stored_shapes(scheme, shape)
    if scheme.extensions:
        return {**stored_shapes(scheme.core, shape), **extensions.stored_shapes(scheme, shape)}
    if scheme.type == "nf4":
        return nf4.stored_shapes(scheme, shape)
    if scheme.kind == "nvfp4":
        return nvfp4.stored_shapes(scheme, shape)
    rows, columns = shape
    groups = columns // scheme.group_width(columns)
    shapes: dict[str, tuple[int, ...]] = {SCALE: (1,) if scheme.per_tensor else (rows, groups)}
    if _has_input_scale(scheme):
        shapes[INPUT_SCALE] = (1,)
    if storage_format(scheme) != PACK:
        zero_points = {} if scheme.symmetric else {ZERO_POINT: (rows, groups)}
        return {PLAIN: shape, **shapes, **zero_points}
    shapes |= {PACKED: (rows, words_of(columns, scheme.bits)), SHAPE: (2,)}
    return shapes if scheme.symmetric else shapes | {ZERO_POINT: (words_of(rows, scheme.bits), groups)}


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    """Suffixes of the tensors that store one weight of this scheme."""
    return tuple(stored_shapes(scheme, (1, scheme.group_size or 1)))


def plain_dtype(scheme: Scheme) -> torch.dtype | None:
    """Dtype of what is stored in `weight`; None where the codes are stored under another name."""
    return torch.uint8 if scheme.type == "nf4" else {INT: torch.int8, FLOAT: FP8}.get(storage_format(scheme))


def narrowed(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale in `dtype`, or in float32 where that would change it: a scale from elsewhere may need every bit."""
    narrow = scale.to(dtype)
    return narrow if torch.equal(narrow.float(), scale) else scale


def _plain(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    return {PLAIN: weight.codes} | ({} if weight.zero_points is None else {ZERO_POINT: weight.zero_points})


def _packed(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    bits = weight.scheme.bits
    tensors = {
        PACKED: pack_words(weight.codes, bits),
        SHAPE: torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zero_points is not None:
        tensors[ZERO_POINT] = pack_words(weight.zero_points.T.contiguous(), bits).T.contiguous()
    return tensors


def _has_input_scale(scheme: Scheme) -> bool:
    return scheme.activations is not None and not scheme.activations.dynamic
