"""The whole model as one ONNX graph of standard operators, its quantized weights through DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.files import write_json
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.requirements import unfit
from compressor.target import Artifact, Session, StoredTensor, Target, Tolerance
from compressor.writer import copy_companions
from targets.casting import Caster, served_config
from targets.onnx.qdq.limits import layer_reasons, shape_problems
from targets.onnx.target import INSTALL, missing_package, require_packages, run_with_genai, why_not_written
from targets.refusals import refusals

GRAPH = "model.onnx"
OTHER_DTYPE = "dtype=float32 works."


@dataclass(frozen=True)
class QdqTarget(Target):
    """What the targets share whose weights pass through DequantizeLinear; subclasses say which integers they are."""

    reader = "onnxruntime's DequantizeLinear, one weight at a time"
    kinds: ClassVar[tuple[str, ...]]  # of weights that a layer may have, the target's own first
    taker: ClassVar[str]  # what takes the weights that this one does not

    dtype: Literal["float16", "float32"] = option("float16", "dtype of activations, scales and key-value cache")

    @property
    def compute(self) -> torch.dtype:
        return torch.float16 if self.dtype == "float16" else torch.float32

    def why_not_made(self) -> str | None:
        return why_not_written()

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        own, example = self.kinds[0], self.preset[0]
        found = refusals("TensorRT", self._layer_reasons, architecture, schemes, example, fuses=False)
        if schemes and not found and own not in {scheme.kind for scheme in schemes.values()}:
            found.append(f"No layer is {own}; the target {self.taker} takes these, or quantize with {example}.")
        return [*shape_problems(architecture), *found]

    def _layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        if scheme.kind in self.kinds:
            return layer_reasons(scheme, in_features, self.preset[0])
        taker = self.taker if scheme.kind in ("int4", "int8") else "hf"
        return [f"{scheme.kind} is not what this target holds; {self.preset[0]} or the target {taker} works"]

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        require_packages()
        import onnx

        from targets.onnx.genai import write_config
        from targets.onnx.qdq import graph, weights
        from targets.onnx.weights import DataFile

        plan = graph.Plan(checkpoint.architecture, checkpoint.schemes, self.compute)
        caster = Caster(self.dtype, checkpoint, OTHER_DTYPE)
        model = graph.build(plan)
        with closing(DataFile(out)) as data:
            weights.stream(plan, checkpoint, caster, data, progress)
        model.graph.initializer.extend(data.initializers)
        onnx.save(model, out / GRAPH)
        write_config(checkpoint.root, checkpoint.config, checkpoint.architecture, out, self.compute, shares_cache=False)
        write_json(out / "config.json", served_config(checkpoint, self.compute))
        copy_companions(checkpoint.root, out)
        return caster.notes

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        require_packages()
        from targets.onnx.qdq.reader import read_weights

        return read_weights(artifact.root)

    def expected(self, name: str, weight: Weight) -> Weight:
        return weight if isinstance(weight, QuantizedWeight) else weight.to(self.compute)

    def stored_tensors(self, artifact: Artifact) -> Iterator[StoredTensor]:
        require_packages()
        from targets.onnx.rules import external_tensors

        return external_tensors(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        require_packages()
        from targets.onnx.rules import check_folder, foreign_operators

        return check_folder(artifact.root) or foreign_operators(artifact.root)


@dataclass(frozen=True)
class _OnnxQdq(QdqTarget):
    runtime = "TensorRT, onnxruntime"
    baseline = "onnx-fp32"
    rules = "graph, external data and genai_config.json fit together, with standard operators only"

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        require_packages()
        from targets.onnx.rules import operators

        if "QuantizeLinear" in operators(artifact.root):
            return Tolerance(0.5, "activations are rounded to int8, after sums in another order")
        if self.dtype == "float16":
            return Tolerance(0.1, "float16 activations are rounded to 11 bits, after sums in another order")
        return super().tolerance(artifact)

    def why_not_run(self) -> str | None:
        missing = missing_package()
        return unfit("onnxruntime") if missing is None else f"{missing} is not installed ({INSTALL})"

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open on plain onnxruntime; `threads` as in `targets.onnx.session.OnnxSession`."""
        require_packages()
        from targets.onnx.session import OnnxSession

        return OnnxSession(artifact.root, **options)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        return run_with_genai(path)


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
