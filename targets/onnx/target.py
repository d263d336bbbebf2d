"""The ONNX Runtime targets: one graph, in float32 or float16, or with its linears in int8 or int4."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import Scheme
from compressor.target import Artifact, Rounding, Tolerance, Variant
from targets.casting import Caster, dtype_name, float_problems
from targets.onnx.folder import GenaiFolder, require_packages
from targets.onnx.limits import by_kind, group_problems, have, shape_problems, table_problems
from targets.onnx.plan import BLOCK_SIZES, Plan
from targets.tolerances import BY_DTYPE, ROUNDED

if TYPE_CHECKING:
    from onnx import ModelProto

    from targets.onnx.weights import DataFile

FP32_WORKS = "The target onnx-fp32 works."
LOW_RANK = "low-rank"  # the kind of linears that are factors alone
EXACT, FAST = 0, 4  # accuracy levels of MatMulNBits
_TAKER = {"int4": "onnx-int4", "int8": "onnx-int8"}  # the target for a kind of weights; hf takes every other


@dataclass(frozen=True)
class _Onnx(GenaiFolder):
    """What the targets share."""

    compute = torch.float32
    runtime = "onnxruntime-genai"
    reader = "onnxruntime with identity input"
    rules = "graph, external data and genai_config.json fit together"
    holds = frozenset({"rank"})

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return [*shape_problems(architecture), *self._scheme_problems(schemes)]

    @abstractmethod
    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]: ...

    def _accuracy_level(self) -> int:
        """Accuracy level of the int4 matrices that are written."""
        return FAST

    def _caster(self, checkpoint: Checkpoint) -> Caster | None:
        """What float parameters are cast by, or None where nothing can change: float32 holds them all."""
        return None

    def build(self, checkpoint: Checkpoint, data: DataFile, progress: Progress) -> tuple[ModelProto, list[str]]:
        from targets.onnx import graph, weights

        plan, caster = Plan.of(checkpoint, self.compute), self._caster(checkpoint)
        model = graph.build(plan, self._accuracy_level())
        weights.stream(plan, checkpoint, caster, data, progress)
        return model, _widening_notes(checkpoint) if caster is None else caster.notes

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        require_packages()
        from targets.onnx.reader import read_weights

        return read_weights(artifact.root)

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        require_packages()
        from targets.onnx.session import rounds_activations

        exact = options.get("accuracy_level") == EXACT
        return ROUNDED if not exact and rounds_activations(artifact.root) else BY_DTYPE[self.compute]

    def rounding(self, artifact: Artifact, **options: Any) -> Rounding | None:
        return Rounding(block=BLOCK_SIZES[0]) if self.tolerance(artifact, **options) is ROUNDED else None


@dataclass(frozen=True)
class _Float(_Onnx):
    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]:
        for kind, names in by_kind(schemes).items():
            if kind == LOW_RANK:
                continue
            yield (
                f"{self.name} takes no quantized weights, and {have(names)} {kind}; "
                f"choose {_TAKER.get(kind, 'hf')}, or leave out the quantizing pass."
            )


@dataclass(frozen=True)
class OnnxFp32(_Float):
    """The model as it is, computed in float32: the baseline of the others."""

    name = "onnx-fp32"
    summary = "float weights for ONNX Runtime, computed in float32"


@dataclass(frozen=True)
class OnnxFp16(_Float):
    """The whole graph in float16, cache and logits too: half the size, and what GPU providers are fast in."""

    name = "onnx-fp16"
    summary = "float16 weights, activations and cache for ONNX Runtime"
    baseline = "onnx-fp32"
    compute = torch.float16

    def _caster(self, checkpoint: Checkpoint) -> Caster:
        return Caster("float16", checkpoint, FP32_WORKS)

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        return float_problems("float16", checkpoint, floats, FP32_WORKS)


@dataclass(frozen=True)
class _Quantized(_Onnx):
    baseline = "onnx-fp32"
    holds_quantized_embedding = True
    holds = frozenset({"rank", "input_factors"})
    bits: ClassVar[int]
    beside: ClassVar[tuple[str, ...]] = ()  # kinds that some layers may have, next to others of its own bits

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]:
        own = f"int{self.bits}"
        inner = [scheme.kind for name, scheme in schemes.items() if name != "lm_head" and scheme.kind != LOW_RANK]
        # The head alone does not make a quantized model: somebody forgot the pass.
        if not inner:
            yield f"{self.name} needs {own} weights; add a quantizing pass such as {self.preset[0]}."
        taken = (own, *self.beside) if own in inner else (own,)
        for kind, names in by_kind(schemes).items():
            if kind not in (*taken, LOW_RANK):
                yield (
                    f"{self.name} takes int{self.bits} weights, and {have(names)} {kind}; "
                    f"quantize with {self.preset[0]}, or choose {_TAKER.get(kind, 'hf')}."
                )
        yield from group_problems(schemes)

    def embedding_problems(self, architecture: Architecture, scheme: Scheme) -> list[str]:
        return list(table_problems(architecture, scheme))


@dataclass(frozen=True)
class OnnxInt8(_Quantized):
    """int8 weights; activations are rounded to int8 inside the kernel, since its exact path is 20 times slower."""

    name = "onnx-int8"
    summary = "int8 weights for ONNX Runtime (MatMulNBits)"
    preset = ("rtn:bits=8",)
    bits = 8


@dataclass(frozen=True)
class OnnxInt4(_Quantized):
    """int4 weights, some layers int8 where a pass chose so.

    Both ways to compute with int4 are measured; the faster one ships unless asked otherwise.
    """

    name = "onnx-int4"
    summary = "int4 weights for ONNX Runtime (MatMulNBits)"
    preset = ("gptq:bits=4",)
    bits = 4
    beside = ("int8",)

    accuracy_level: Literal[0, 4] = option(
        FAST, "0: float activations, exact; 4: activations rounded to int8 per block, faster"
    )

    @property
    def variants(self) -> tuple[Variant, ...]:
        if self.accuracy_level == EXACT:
            return super().variants
        return (Variant(f"level {EXACT}", {"accuracy_level": EXACT}), *super().variants)

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        notes = super().lower(checkpoint, out, progress)
        tied, embedding = checkpoint.architecture.tied_embeddings, checkpoint.architecture.embedding
        linears = {name: scheme for name, scheme in checkpoint.schemes.items() if tied or name != embedding}
        int8 = sum(scheme.bits == 8 for scheme in linears.values())
        if int8 and self.accuracy_level == EXACT:
            notes.append(
                f"{int8} int8 linears compute at accuracy level {FAST}: level {EXACT} is 20 times slower there"
            )
        return notes

    def _accuracy_level(self) -> int:
        return self.accuracy_level


def _widening_notes(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.dtype == torch.float32:
        return []
    return [f"norms and biases cast {dtype_name(checkpoint.dtype)} -> float32, which holds them exactly"]
