"""What TensorRT-LLM does to fp8 and NVFP4 layers that it fuses, and when that changes nothing.

A fused fp8 matrix has one weight scale and one input scale: the loader takes the largest of its parts', multiplies
every part by its own scale in the model's dtype, and rounds it again at the largest. That gives back the codes that
were stored only if the scales are equal, and if the dtype holds what lies between. Of NVFP4 it asserts that the scales
of the tensors and of their inputs are equal.

Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py, `FP8QDQLinearMethod.rescale_fused_weights` and
`NVFP4LinearMethod.load_weight_scales`.
"""

from __future__ import annotations

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block
from compressor.errors import InputError
from compressor.quantized import FP8_LARGEST, FP16_SMALLEST_NORMAL, QuantizedWeight

# float16 has to hold 448 scales, and must not lose bits of the smallest code, 2^-9, times the scale.
FLOAT16_LOWEST, FLOAT16_HIGHEST = FP16_SMALLEST_NORMAL, 65504 / FP8_LARGEST
REMEDY = "Start from the float checkpoint, with the pass fp8:scales=tensor,activations=static or nvfp4."


def check_fused(block: Block, architecture: Architecture, dtype: torch.dtype) -> None:
    """See that the loader will give fused layers the codes and scales that they have in a block.

    Args:
        dtype: what the model is served in.

    Raises:
        InputError: it will not.
    """
    if block.index is None:
        return
    # A checkpoint's stacked linear is taken apart first, and its parts are fused like any others.
    for branch in architecture.modules.branches:
        scales = _scales(block, branch.first)
        for name, scale in scales.items():
            first = next(iter(scales))
            if scale != scales[first]:
                raise InputError(
                    f"{first} and {name} have different scales; TensorRT-LLM fuses them, and would round again.", REMEDY
                )
            is_fp8 = scale[0] == "fp8"
            if is_fp8 and dtype == torch.float16 and not FLOAT16_LOWEST <= scale[1] <= FLOAT16_HIGHEST:
                raise InputError(
                    f"{name} has the scale {scale[1]:.3g}; TensorRT-LLM loses bits when it fuses it in float16.",
                    "dtype=bfloat16 works.",
                )


def _scales(block: Block, group: tuple[str, ...]) -> dict[str, tuple[str, float, float | None]]:
    """Kind, scale of the tensor and scale of its inputs, of those layers of a fused group that have one a tensor."""
    scales = {}
    for linear in group:
        name = f"{block.prefix}{linear}"
        weight = block.weights[f"{name}.weight"]
        if isinstance(weight, QuantizedWeight) and weight.scheme.kind in ("fp8", "nvfp4"):
            of_tensor = weight.scales[0, 0] if weight.scheme.per_tensor else weight.tensor_scale
            if of_tensor is not None:
                inputs = None if weight.input_scale is None else float(weight.input_scale)
                scales[name] = (weight.scheme.kind, float(of_tensor), inputs)
    return scales
