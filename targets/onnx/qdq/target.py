"""The whole model as one ONNX graph of standard operators, its quantized weights through DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import Scheme
from compressor.target import Artifact, Tolerance
from targets.casting import Caster, factor_problems, scale_problems
from targets.onnx.folder import GenaiFolder, OnnxFolder, require_packages
from targets.onnx.limits import graph_problems
from targets.onnx.qdq.limits import layer_reasons
from targets.refusals import refusals
from targets.tolerances import BY_DTYPE, ROUNDED

if TYPE_CHECKING:
    from onnx import ModelProto

    from targets.onnx.weights import DataFile

OTHER_DTYPE = "dtype=float32 works."


@dataclass(frozen=True)
class QdqTarget(OnnxFolder):
    """What the targets share whose weights pass through DequantizeLinear; subclasses say which integers they are."""

    reader = "onnxruntime's DequantizeLinear, one weight at a time"
    shares_cache = False
    holds = frozenset({"input_factors"})
    kinds: ClassVar[tuple[str, ...]]  # of weights that a layer may have, the target's own first
    taker: ClassVar[str]  # what takes the weights that this one does not

    dtype: Literal["float16", "float32"] = option("float16", "dtype of activations, scales and key-value cache")

    @property
    def compute(self) -> torch.dtype:
        return torch.float16 if self.dtype == "float16" else torch.float32

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        own, example = self.kinds[0], self.preset[0]
        found = refusals("TensorRT", self._layer_reasons, architecture, schemes, example, fuses=False)
        if schemes and not found and own not in {scheme.kind for scheme in schemes.values()}:
            found.append(f"No layer is {own}; the target {self.taker} takes these, or quantize with {example}.")
        return [*graph_problems(architecture), *found]

    def _layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        if scheme.kind in self.kinds:
            return layer_reasons(scheme, in_features, self.preset[0])
        taker = self.taker if scheme.kind in ("int4", "int8") else "hf"
        return [f"{scheme.kind} is not what this target holds; {self.preset[0]} or the target {taker} works"]

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        yield from scale_problems(checkpoint, self.compute, OTHER_DTYPE)
        yield from factor_problems(checkpoint, self.compute, OTHER_DTYPE)

    def build(self, checkpoint: Checkpoint, data: DataFile, progress: Progress) -> tuple[ModelProto, list[str]]:
        from targets.onnx.qdq import graph, weights

        plan = graph.Plan(checkpoint.architecture, checkpoint.schemes, self.compute)
        caster = Caster(self.dtype, checkpoint, OTHER_DTYPE)
        model = graph.build(plan)
        weights.stream(plan, checkpoint, caster, data, progress)
        return model, caster.notes

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        require_packages()
        from targets.onnx.qdq.reader import read_weights

        return read_weights(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        require_packages()
        from targets.onnx.rules import foreign_operators

        return super().broken_rules(artifact) or foreign_operators(artifact.root)


@dataclass(frozen=True)
class _OnnxQdq(GenaiFolder, QdqTarget):
    runtime = "TensorRT, onnxruntime"
    baseline = "onnx-fp32"
    rules = "graph, external data and genai_config.json fit together, with standard operators only"

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        require_packages()
        from targets.onnx.rules import operators

        return ROUNDED if "QuantizeLinear" in operators(artifact.root) else BY_DTYPE[self.compute]


@dataclass(frozen=True)
class OnnxQdqInt4(_OnnxQdq):
    """int4 weights, symmetric, some layers int8."""

    name = "onnx-qdq-int4"
    summary = "int4 weights in standard ONNX (DequantizeLinear), for TensorRT's parser"
    preset = ("gptq:bits=4",)
    kinds = ("int4", "int8")
    taker = "onnx-qdq-int8"


@dataclass(frozen=True)
class OnnxQdqInt8(_OnnxQdq):
    """int8 weights, symmetric; with static int8 activations too, where a pass chose a scale for them."""

    name = "onnx-qdq-int8"
    summary = "int8 weights, or W8A8 static, in standard ONNX (DequantizeLinear), for TensorRT's parser"
    preset = ("gptq:bits=8,group_size=channel",)
    kinds = ("int8",)
    taker = "onnx-qdq-int4"
