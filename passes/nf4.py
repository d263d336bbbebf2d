"""NF4: four-bit codes of a table that fits a normal distribution, quantized by bitsandbytes block by block.

Paper: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from typing import Any, ClassVar

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError, MissingExtra
from compressor.nf4 import RoundedScales
from compressor.options import option
from compressor.pass_ import BlockPass, PassContext
from compressor.quantized import QuantizedWeight, Scheme
from passes.quantizing import LinearPass

GROUP_SIZE = 64


def quantize(weight: torch.Tensor, double_quant: bool) -> QuantizedWeight:
    """Round a weight, float32 [out_features, in_features], to NF4 in groups of 64 as bitsandbytes does.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    with _library() as functional:
        packed, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=GROUP_SIZE, compress_statistics=double_quant, quant_type="nf4"
        )
    packed = packed.flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).view(weight.shape)
    scales = state.absmax.view(len(weight), -1)
    scheme = Scheme(4, GROUP_SIZE, type="nf4", double_quant=double_quant)
    if not double_quant:
        return QuantizedWeight(codes, scales, None, scheme)
    rounded = RoundedScales(scales, state.state2.code, state.state2.absmax, state.offset)
    return QuantizedWeight(codes, rounded.values(), None, scheme, rounded_scales=rounded)


@contextmanager
def _library() -> Iterator[Any]:
    """bitsandbytes.functional, which looks for kernels on the hub when it is imported, and says so when it has none."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "bitsandbytes", "The pass nf4")
    with redirect_stderr(StringIO()):
        from bitsandbytes import functional

    yield functional


@dataclass(frozen=True)
class _Options:
    """Apart from `NF4` only so that listings show them before the options of `LinearPass`."""

    double_quant: bool = option(False, "round the scales to eight bits too, which saves 0.37 bits a weight")


@dataclass(frozen=True)
class NF4(LinearPass, _Options, BlockPass):
    """NF4 in groups of 64, for transformers with bitsandbytes."""

    name: ClassVar[str] = "nf4"
    summary: ClassVar[str] = "NF4 by bitsandbytes (QLoRA, arXiv 2305.14314); for the target hf"

    lm_head: bool = option(False, "quantize lm_head too; a tied one is untied, the embedding stays as it is")

    @property
    def key(self) -> str:
        return f"{self.spelled()} {version('bitsandbytes')}"

    @property
    def scheme(self) -> Scheme:
        return Scheme(4, GROUP_SIZE, type="nf4", double_quant=self.double_quant)

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "bitsandbytes", "The pass nf4")
        return super().plan(architecture, schemes)

    def plan_layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        misfit = next((name for name, (_, width) in shapes.items() if width % GROUP_SIZE), None)
        if misfit is not None:
            raise InputError(
                f"NF4 rounds in groups of {GROUP_SIZE}, which does not divide the input width {shapes[misfit][1]} "
                f"of {misfit}.",
                "gptq:bits=4,group_size=32 or channel may work.",
            )
        return super().plan_layers(shapes)

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        rounded: dict[str, Weight] = {
            f"{name}.weight": quantize(weight, self.double_quant)
            for name, weight in self.weights_to_quantize(block, checkpoint).items()
        }
        return block.with_weights(rounded)
