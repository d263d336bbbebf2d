"""int4 weights as AutoAWQ writes them (GEMM), for the many runtimes that read this format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact
from targets.casting import float16_scales, scale_problems
from targets.packing import awq_folder
from targets.packing.awq_linear import pack_linear, stored_zero_points
from targets.refusals import kind_reasons, one_scheme
from targets.structure import PACKED_RULES, broken_packed_rules
from targets.vllm import GROUP_SIZES, VllmFolder, packed_reasons


@dataclass(frozen=True)
class AwqFolder(VllmFolder):
    """Weights alone in int4, groups of 32, 64 or 128, always with zero points: a symmetric weight's are 8.

    Whoever chose the integers fits: the scales that the pass awq multiplies activations with are in the layers before.
    """

    name = "awq"
    summary = "AWQ folder (AutoAWQ's GEMM layout), int4, for vLLM"
    preset = ("awq:symmetric=false",)
    takes_transposed = False  # AutoAWQ packs torch's own linears
    reader = awq_folder.READER
    rules = PACKED_RULES

    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        yield from kind_reasons(scheme, "int4", "awq:bits=4 or the target gptq")
        yield from packed_reasons(scheme, out_features, in_features)
        if scheme.group_size is None and in_features % 32 == 0:
            fitting = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
            yield f"one scale a channel is not what this format is for; group_size {fitting} works"

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        return [*super().problems(architecture, schemes), *one_scheme(inner)]

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        yield from super().value_problems(checkpoint, floats)
        yield from scale_problems(checkpoint, torch.float16, "The target hf keeps them.")

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        notes = super().lower(checkpoint, out, progress)
        symmetric = sum(scheme.symmetric for scheme in checkpoint.schemes.values())
        stored = f"{symmetric} symmetric weights are stored with zero points of 8, which this format always has"
        return [*notes, stored] if symmetric else notes

    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        parts = {**pack_linear(weight), "scales": float16_scales(layer, weight)}
        return {f"{layer}.{part}": tensor for part, tensor in parts.items()}

    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        scheme = next(iter(checkpoint.schemes.values()))
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": scheme.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": [
                name for name in checkpoint.architecture.linears() if name not in checkpoint.schemes
            ],
        }

    def expected(self, name: str, weight: Weight, architecture: Architecture) -> Weight:
        if isinstance(weight, QuantizedWeight):
            return replace(weight, zero_points=stored_zero_points(weight))
        return super().expected(name, weight, architecture)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return broken_packed_rules(artifact.root)

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return awq_folder.read_folder(artifact.root)
