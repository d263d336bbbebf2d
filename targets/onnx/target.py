"""The ONNX Runtime targets: one graph, with its linears in float32, int8 or int4."""

from __future__ import annotations

import json
import shlex
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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
from compressor.target import Artifact, Session, StoredTensor, Target, Tolerance, Variant
from compressor.writer import copy_companions
from targets.casting import dtype_name, served_config
from targets.onnx.plan import BLOCK_SIZES

EXACT, FAST = 0, 4  # accuracy levels of MatMulNBits
HEAD_DIM_STEP = 8
_ROUNDED = Tolerance(0.5, "activations are rounded to int8, after float32 sums in another order")
# Rules whose tables do not depend on how long the text is.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_TAKER = {"int4": "onnx-int4", "int8": "onnx-int8"}  # the target for a kind of weights; hf takes every other


@dataclass(frozen=True)
class _Onnx(Target):
    """What the three targets share."""

    runtime = "onnxruntime-genai"
    reader = "onnxruntime with identity input"
    rules = "graph, external data and genai_config.json fit together"

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return [*_shape_problems(architecture), *self._scheme_problems(schemes)]

    @abstractmethod
    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]: ...

    def _accuracy_level(self) -> int:
        """Accuracy level of the int4 matrices that are written."""
        return FAST

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        _require_packages()
        import onnx

        from targets.onnx import genai, graph, weights

        model = graph.build(checkpoint.architecture, checkpoint.schemes, self._accuracy_level())
        with closing(weights.DataFile(out)) as data:
            weights.stream(checkpoint, data, progress)
        model.graph.initializer.extend(data.initializers)
        onnx.save(model, out / "model.onnx")
        genai.write_config(checkpoint.root, checkpoint.config, checkpoint.architecture, out)
        write_json(out / "config.json", served_config(checkpoint, torch.float32))
        copy_companions(checkpoint.root, out)
        return _notes(checkpoint)

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        _require_packages()
        from targets.onnx.reader import read_weights

        return read_weights(artifact.root)

    def expected(self, name: str, weight: Weight) -> Weight:
        return weight if isinstance(weight, QuantizedWeight) else weight.float()

    def stored_tensors(self, artifact: Artifact) -> Iterator[StoredTensor]:
        _require_packages()
        from targets.onnx.rules import external_tensors

        return external_tensors(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        _require_packages()
        from targets.onnx.rules import check_folder

        return check_folder(artifact.root)

    def tolerance(self, artifact: Artifact) -> Tolerance:
        _require_packages()
        from targets.onnx.session import rounds_activations

        return _ROUNDED if rounds_activations(artifact.root) else super().tolerance(artifact)

    def why_not_run(self) -> str | None:
        missing = _missing_package()
        return None if missing is None else f"{missing} is not installed (pip install 'llmc-compiler[onnx]')"

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open on plain onnxruntime.

        Args:
            options: `accuracy_level` and `threads`, see `targets.onnx.session.OnnxSession`.
        """
        _require_packages()
        from targets.onnx.session import OnnxSession

        return OnnxSession(artifact.root, **options)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        return "python -c " + shlex.quote(
            "import onnxruntime_genai as og; "
            f"model = og.Model({json.dumps(path)}); tokenizer = og.Tokenizer(model); "
            "parameters = og.GeneratorParams(model); parameters.set_search_options(max_length=100); "
            "generator = og.Generator(model, parameters); "
            'generator.append_tokens(tokenizer.encode("Once upon a time")); '
            "any(generator.generate_next_token() for _ in iter(generator.is_done, True)); "
            "print(tokenizer.decode(generator.get_sequence(0)))"
        )


@dataclass(frozen=True)
class OnnxFp32(_Onnx):
    """The model as it is, in float32: the baseline of the other two."""

    name = "onnx-fp32"
    summary = "float32 weights for ONNX Runtime"

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]:
        for kind, names in _by_kind(schemes).items():
            yield (
                f"onnx-fp32 takes no quantized weights, and {_have(names)} {kind}; "
                f"choose {_TAKER.get(kind, 'hf')}, or leave out the quantizing pass."
            )


@dataclass(frozen=True)
class _Quantized(_Onnx):
    baseline = "onnx-fp32"
    bits: ClassVar[int]
    beside: ClassVar[tuple[str, ...]] = ()  # kinds that some layers may have, next to others of its own bits

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> Iterable[str]:
        own = f"int{self.bits}"
        inner = [scheme.kind for name, scheme in schemes.items() if name.startswith("model.layers.")]
        # The head alone does not make a quantized model: somebody forgot the pass.
        if not inner:
            yield f"{self.name} needs {own} weights; add a quantizing pass such as {self.preset[0]}."
        taken = (own, *self.beside) if own in inner else (own,)
        for kind, names in _by_kind(schemes).items():
            if kind not in taken:
                yield (
                    f"{self.name} takes int{self.bits} weights, and {_have(names)} {kind}; "
                    f"quantize with {self.preset[0]}, or choose {_TAKER.get(kind, 'hf')}."
                )
        yield from _group_problems(schemes)


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
        int8 = sum(scheme.bits == 8 for scheme in checkpoint.schemes.values())
        if int8 and self.accuracy_level == EXACT:
            notes.append(
                f"{int8} int8 linears compute at accuracy level {FAST}: level {EXACT} is 20 times slower there"
            )
        return notes

    def _accuracy_level(self) -> int:
        return self.accuracy_level


def _missing_package() -> str | None:
    return next((package for package in ("onnx", "onnxruntime") if find_spec(package) is None), None)


def _require_packages() -> None:
    missing = _missing_package()
    if missing is not None:
        raise MissingExtra(missing, "onnx", "An ONNX Runtime target")


def _shape_problems(architecture: Architecture) -> Iterator[str]:
    if architecture.activation != "silu":
        yield f"The ONNX graph knows the activation silu, not {architecture.activation}; choose target hf."
    if architecture.rope_type not in ROPE_TYPES:
        yield (
            f"Rotary scaling {architecture.rope_type!r} changes with the length of the text, which a stored table "
            "cannot follow; choose target hf."
        )
    if architecture.head_dim % HEAD_DIM_STEP:
        yield (
            f"onnxruntime's attention takes a head_dim that is a multiple of {HEAD_DIM_STEP}, "
            f"not {architecture.head_dim}; choose target hf."
        )


def _group_problems(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    smallest = BLOCK_SIZES[-1]
    odd = [name for name, scheme in schemes.items() if scheme.group_size and scheme.group_size % smallest]
    if odd:
        yield (
            f"onnxruntime takes groups of a multiple of {smallest}, and {_have(odd)} "
            f"group_size={schemes[odd[0]].group_size}; use group_size=32, 64 or 128."
        )


def _by_kind(schemes: Mapping[str, Scheme]) -> dict[str, list[str]]:
    names = defaultdict(list)
    for name, scheme in schemes.items():
        names[f"{scheme.kind} and {scheme.activations}" if scheme.activations else scheme.kind].append(name)
    return names


def _have(names: list[str]) -> str:
    """`lm_head has`, or `lm_head and 3 more have`."""
    return f"{names[0]} and {len(names) - 1} more have" if len(names) > 1 else f"{names[0]} has"


def _notes(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.dtype == torch.float32:
        return []
    return [f"unquantized tensors cast {dtype_name(checkpoint.dtype)} -> float32, which holds them exactly"]
