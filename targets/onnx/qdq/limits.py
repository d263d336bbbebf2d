"""What the graph cannot express and TensorRT's parser does not take, each with what works."""

from __future__ import annotations

from collections.abc import Iterable

from compressor.quantized import Scheme

# Blocks that TensorRT keeps at four bits; larger groups are blocks that repeat a scale.
BLOCK_SIZES = (128, 64, 32, 16)


def block_size(scheme: Scheme, columns: int) -> int | None:
    """Block size along the input features that carries `scheme` exactly; None is one scale a channel, 0 is none.

    An int4 scale a channel is repeated over blocks: what has no blocks is unpacked by TensorRT.
    """
    if scheme.group_size is None and scheme.bits == 8:
        return None
    return next((size for size in BLOCK_SIZES if (scheme.group_size or columns) % size == 0), 0)


def layer_reasons(scheme: Scheme, columns: int, preset: str) -> Iterable[str]:
    """Why a layer of this scheme, int4 or int8 with so many input features, is not taken."""
    if not scheme.symmetric:
        yield "TensorRT's DequantizeLinear has no zero points; symmetric=true works, or the target onnx-int4"
    if block_size(scheme, columns) == 0:
        size = f"group {scheme.group_size}" if scheme.group_size else f"the input width {columns}"
        yield f"{size} is no multiple of {BLOCK_SIZES[-1]}; group_size=32, 64 or 128 works"
    if scheme.activations is None:
        return
    if scheme.bits == 4:
        yield f"{scheme.activations} are not multiplied with int4 weights; activations=none works"
    elif scheme.activations.dynamic:
        yield f"QuantizeLinear has one scale for all tokens; activations=static works, or {preset}"
    elif scheme.group_size is not None:
        yield "int8 products have no groups; group_size=channel works"
