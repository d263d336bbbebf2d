"""The ONNX Runtime targets: one graph, in float32 or float16, or with its linears in int8 or int4."""

from __future__ import annotations

import json
import shlex
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import MissingExtra
from compressor.files import write_json
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.requirements import unfit
from compressor.target import Artifact, Session, StoredTensor, Target, Tolerance, Variant
from compressor.writer import copy_companions
from targets.casting import Caster, dtype_name, float_problems, served_config
from targets.onnx.limits import by_kind, group_problems, have, shape_problems, table_problems
from targets.onnx.plan import Plan
from targets.tolerances import BY_DTYPE, ROUNDED

FP32_WORKS = "The target onnx-fp32 works."
INSTALL = "pip install 'llmc-compiler[onnx]'"
EXACT, FAST = 0, 4  # accuracy levels of MatMulNBits
# Asks glibc for pages of 2 MiB; other C libraries do not look at it. A token reads all weights, and finding them in
# pages of 4 KiB is up to a quarter of its time.
HUGE_PAGES = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
_TAKER = {"int4": "onnx-int4", "int8": "onnx-int8"}  # the target for a kind of weights; hf takes every other


@dataclass(frozen=True)
class _Onnx(Target):
    """What the targets share."""

    compute: ClassVar[torch.dtype] = torch.float32  # of activations and cache
    runtime = "onnxruntime-genai"
    reader = "onnxruntime with identity input"
    rules = "graph, external data and genai_config.json fit together"

    def why_not_made(self) -> str | None:
        return why_not_written()

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

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        require_packages()
        import onnx

        from targets.onnx import genai, graph, weights

        plan, caster = Plan.of(checkpoint, self.compute), self._caster(checkpoint)
        model = graph.build(plan, self._accuracy_level())
        with closing(weights.DataFile(out)) as data:
            weights.stream(plan, checkpoint, caster, data, progress)
        model.graph.initializer.extend(data.initializers)
        onnx.save(model, out / "model.onnx")
        genai.write_config(checkpoint.root, checkpoint.config, checkpoint.architecture, out, self.compute)
        write_json(out / "config.json", served_config(checkpoint, self.compute))
        copy_companions(checkpoint.root, out)
        return _widening_notes(checkpoint) if caster is None else caster.notes

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        require_packages()
        from targets.onnx.reader import read_weights

        return read_weights(artifact.root)

    def expected(self, name: str, weight: Weight) -> Weight:
        return weight if isinstance(weight, QuantizedWeight) else weight.to(self.compute)

    def stored_tensors(self, artifact: Artifact) -> Iterator[StoredTensor]:
        require_packages()
        from targets.onnx.rules import external_tensors

        return external_tensors(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        require_packages()
        from targets.onnx.rules import check_folder

        return check_folder(artifact.root)

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        require_packages()
        from targets.onnx.session import rounds_activations

        exact = options.get("accuracy_level") == EXACT
        return ROUNDED if not exact and rounds_activations(artifact.root) else BY_DTYPE[self.compute]

    def why_not_run(self) -> str | None:
        missing = missing_package()
        return unfit("onnxruntime") if missing is None else f"{missing} is not installed ({INSTALL})"

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open on plain onnxruntime.

        Args:
            options: `accuracy_level` and `threads`, see `targets.onnx.session.OnnxSession`.
        """
        require_packages()
        from targets.onnx.session import OnnxSession

        return OnnxSession(artifact.root, **options)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        return run_with_genai(path)


@dataclass(frozen=True)
class _Float(_Onnx):
    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]:
        for kind, names in by_kind(schemes).items():
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
    bits: ClassVar[int]
    beside: ClassVar[tuple[str, ...]] = ()  # kinds that some layers may have, next to others of its own bits

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]:
        own = f"int{self.bits}"
        inner = [scheme.kind for name, scheme in schemes.items() if name != "lm_head"]
        # The head alone does not make a quantized model: somebody forgot the pass.
        if not inner:
            yield f"{self.name} needs {own} weights; add a quantizing pass such as {self.preset[0]}."
        taken = (own, *self.beside) if own in inner else (own,)
        for kind, names in by_kind(schemes).items():
            if kind not in taken:
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


def run_with_genai(path: str) -> str:
    """The command line that generates with the folder at `path`."""
    return f"env {HUGE_PAGES} python -c " + shlex.quote(
        "import onnxruntime_genai as og; "
        f"model = og.Model({json.dumps(path)}); tokenizer = og.Tokenizer(model); "
        "parameters = og.GeneratorParams(model); parameters.set_search_options(max_length=100); "
        "generator = og.Generator(model, parameters); "
        'generator.append_tokens(tokenizer.encode("Once upon a time")); '
        "any(generator.generate_next_token() for _ in iter(generator.is_done, True)); "
        "print(tokenizer.decode(generator.get_sequence(0)))"
    )


def missing_package() -> str | None:
    """The first package that ONNX files need and that is not installed."""
    return next((package for package in ("onnx", "onnxruntime") if find_spec(package) is None), None)


def why_not_written() -> str | None:
    """Why no artifact could be written and read back here."""
    missing = missing_package()
    return None if missing is None else f"ONNX files need {missing}, which is missing; {INSTALL}."


def require_packages() -> None:
    """Refuse to go on without the packages that ONNX files need."""
    missing = missing_package()
    if missing is not None:
        raise MissingExtra(missing, "onnx", "An ONNX Runtime target")


def _widening_notes(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.dtype == torch.float32:
        return []
    return [f"norms and biases cast {dtype_name(checkpoint.dtype)} -> float32, which holds them exactly"]
