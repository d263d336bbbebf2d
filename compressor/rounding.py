"""What a running layer does beside its matrices: multiplied inputs, rounded ones, an fp8 key-value cache.

Values that are rounded go to the nearest code and back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from compressor import nvfp4
from compressor.quantized import FP8, FP8_LARGEST, Activations, QuantizedWeight

FP8_INPUTS = Activations(8, "float", dynamic=False)

# What the largest value becomes, as in vLLM's kernels (csrc/quantization, `dynamic_scaled_int8_quant`). The simulation
# of compressed-tensors takes 127.5, half way between two codes, where the last bit of a sum decides.
INT8_LARGEST = 127.0


def activation_scale(largest: torch.Tensor, activations: Activations) -> torch.Tensor:
    """The scale at which `largest`, an absolute maximum, is still in range; that of nothing but zeros is positive."""
    if activations.bits == 4:
        return nvfp4.tensor_scale_of(largest)
    scale = largest / (FP8_LARGEST if activations.type == "float" else INT8_LARGEST)
    return torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)


def round_inputs(inputs: torch.Tensor, activations: Activations, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Inputs [..., in_features] as their codes mean them, in their own dtype.

    Args:
        scale: the stored scale; None finds one for each token.
    """
    values = inputs.float()
    if activations.bits == 4:
        assert scale is not None  # NVFP4 is never without
        return nvfp4.round_inputs(values, scale).to(inputs.dtype)
    if scale is None:
        low, high = values.aminmax(dim=-1, keepdim=True)
        scale = activation_scale(torch.maximum(-low, high), activations)
    scaled = values / scale
    if activations.type == "float":
        codes = scaled.clamp_(-FP8_LARGEST, FP8_LARGEST).to(FP8).float()
    else:
        codes = scaled.round_().clamp_(-128, 127)
    return codes.mul_(scale).to(inputs.dtype)


def prepare_inputs(weight: QuantizedWeight) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes of a layer's inputs [..., in_features] those that its quantized matrix meets, in their own dtype."""
    factors, activations, scale = weight.input_factors, weight.scheme.activations, weight.input_scale

    def prepared(inputs: torch.Tensor) -> torch.Tensor:
        if factors is not None:
            inputs = inputs * factors.to(inputs.dtype)
        return inputs if activations is None else round_inputs(inputs, activations, scale)

    return prepared


def equip(linear: nn.Module, weight: QuantizedWeight) -> None:
    """From now on `linear`, which holds the values of `weight.core`, does what the weight has beside these."""
    if weight.input_factors is not None or weight.scheme.activations is not None:
        prepare = prepare_inputs(weight)
        linear.register_forward_pre_hook(lambda _, inputs: (prepare(inputs[0]),))
    if weight.branch is not None:
        down, up = weight.branch.down.T, weight.branch.up.T

        def add(_: nn.Module, inputs: tuple[torch.Tensor], outputs: torch.Tensor) -> torch.Tensor:
            (read,) = inputs
            return outputs + (read @ down.to(read.dtype)) @ up.to(read.dtype)

        linear.register_forward_hook(add)


def cache_argument(attention: nn.Module) -> str:
    """What the attention of this version of transformers calls the cache that it is called with."""
    # transformers 5.24 calls it `cache`, and drops one that comes under the old name beside it.
    return "cache" if "cache" in inspect.signature(attention.forward).parameters else "past_key_values"


def round_cache_of(attention: nn.Module, k_scale: torch.Tensor, v_scale: torch.Tensor) -> None:
    """From now on `attention` sees the keys and values that an fp8 cache with these scales gives back."""
    cache, name = _Fp8Cache(k_scale.float(), v_scale.float()), cache_argument(attention)

    def hand_over(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, name: cache}

    attention.register_forward_pre_hook(hand_over, with_kwargs=True)


class _Fp8Cache:
    """Looks like a cache to transformers' attention; keeps nothing, since every text is run from its start."""

    def __init__(self, k_scale: torch.Tensor, v_scale: torch.Tensor) -> None:
        self._k_scale, self._v_scale = k_scale, v_scale

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys after the rotary embedding and values as projected, [batch, heads, length, head_dim], rounded."""
        return round_inputs(keys, FP8_INPUTS, self._k_scale), round_inputs(values, FP8_INPUTS, self._v_scale)
