"""The ONNX Runtime targets: one graph, with its linears in float32, int8 or int4."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import InputError, MissingExtra
from compressor.files import write_json
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact, Session, Target, Variant
from targets.onnx.plan import BLOCK_SIZES

ACCURACY_LEVELS = (0, 1, 4)
EXACT_LEVEL = 0
HEAD_DIM_STEP = 8
FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class _Onnx(Target):
    """What the three targets share."""

    runtime: ClassVar[str] = "onnxruntime-genai"
    reader: ClassVar[str] = "onnxruntime with identity input"
    bits: ClassVar[int | None] = None

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return [*_shape_problems(architecture), *self._scheme_problems(schemes)]

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> list[str]:
        raise NotImplementedError

    def _level(self) -> int:
        """Accuracy level of int4 matrices."""
        return EXACT_LEVEL

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        _require_onnx()
        from onnx import save

        from compressor.writer import copy_companions
        from targets.onnx import genai, graph, weights

        for problem in _rope_problems(_rope_type(checkpoint.config)):
            raise InputError(problem)
        model = graph.build(checkpoint.architecture, checkpoint.schemes, self._level())
        with closing(weights.DataFile(out)) as data:
            weights.stream(checkpoint, data, progress)
        model.graph.initializer.extend(data.initializers)
        save(model, out / "model.onnx")
        genai.write_config(checkpoint.root, checkpoint.config, checkpoint.architecture, out)
        write_json(out / "config.json", {k: v for k, v in checkpoint.config.items() if k != "quantization_config"})
        copy_companions(checkpoint.root, out)
        return _notes(checkpoint)

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        _require_onnx()
        from targets.onnx.reader import read_weights

        return read_weights(artifact.root)

    def expected(self, name: str, weight: Weight) -> Weight:
        return weight if isinstance(weight, QuantizedWeight) else weight.float()

    def why_not_run(self) -> str | None:
        return None if _installed() else "onnxruntime is not installed (pip install 'llmc-compiler[onnx]')"

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open on plain onnxruntime.

        Args:
            options: `accuracy_level` and `threads`, as `targets.onnx.session.OnnxSession` takes them.
        """
        _require_onnx()
        from targets.onnx.session import OnnxSession

        return OnnxSession(artifact.root, **options)

    def run_command(self, artifact: str) -> str:
        return "python -c " + shlex.quote(
            "import onnxruntime_genai as og; "
            f"model = og.Model({json.dumps(artifact)}); tokenizer = og.Tokenizer(model); "
            "parameters = og.GeneratorParams(model); parameters.set_search_options(max_length=100); "
            "generator = og.Generator(model, parameters); "
            'generator.append_tokens(tokenizer.encode("Once upon a time")); '
            "[generator.generate_next_token() for _ in iter(generator.is_done, True)]; "
            "print(tokenizer.decode(generator.get_sequence(0)))"
        )


@dataclass(frozen=True)
class OnnxFp32(_Onnx):
    """The model as it is, in float32: the baseline of the other two."""

    name: ClassVar[str] = "onnx-fp32"
    summary: ClassVar[str] = "ONNX Runtime, float32 weights"

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> list[str]:
        return [
            f"onnx-fp32 takes no quantized weights, and {_have(names)} int{bits}; "
            f"choose onnx-int{bits}, or leave out the quantizing pass."
            for bits, names in _grouped((scheme.bits, name) for name, scheme in schemes.items()).items()
        ]


@dataclass(frozen=True)
class _Quantized(_Onnx):
    baseline: ClassVar[str | None] = "onnx-fp32"

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> list[str]:
        if not any(name.startswith("model.layers.") for name in schemes):
            return [f"{self.name} needs int{self.bits} weights; add a quantizing pass such as {self.preset[0]}."]
        return [*self._wrong_bits(schemes), *_wrong_groups(schemes)]

    def _wrong_bits(self, schemes: Mapping[str, Scheme]) -> Iterator[str]:
        for bits, names in _grouped((scheme.bits, name) for name, scheme in schemes.items()).items():
            if bits != self.bits:
                yield (
                    f"{self.name} takes int{self.bits} weights, and {_have(names)} int{bits}; "
                    f"quantize with bits={self.bits}, or choose onnx-int{bits}."
                )


@dataclass(frozen=True)
class OnnxInt8(_Quantized):
    """int8 weights, activations rounded to int8 inside the kernel."""

    name: ClassVar[str] = "onnx-int8"
    summary: ClassVar[str] = "ONNX Runtime, int8 weights (MatMulNBits)"
    preset: ClassVar[tuple[str, ...]] = ("rtn:bits=8",)
    bits: ClassVar[int | None] = 8


@dataclass(frozen=True)
class OnnxInt4(_Quantized):
    """int4 weights; by default activations are rounded to int8 inside the kernel, which is the faster one."""

    name: ClassVar[str] = "onnx-int4"
    summary: ClassVar[str] = "ONNX Runtime, int4 weights (MatMulNBits)"
    preset: ClassVar[tuple[str, ...]] = ("gptq:bits=4",)
    bits: ClassVar[int | None] = 4
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant("accuracy_level 0", {"accuracy_level": EXACT_LEVEL}),
        Variant("", {}),
    )

    accuracy_level: int = option(4, "0: float activations, exact; 4: activations rounded to int8 per block, faster")

    def __post_init__(self) -> None:
        if self.accuracy_level not in ACCURACY_LEVELS:
            levels = ", ".join(map(str, ACCURACY_LEVELS))
            raise InputError(f"accuracy_level={self.accuracy_level} is not one of {levels}.")

    def _level(self) -> int:
        return self.accuracy_level


def _installed() -> bool:
    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


def _require_onnx() -> None:
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtra(package, "onnx", "Lowering to ONNX Runtime")


def _shape_problems(architecture: Architecture) -> Iterator[str]:
    if architecture.activation != "silu":
        yield f"The ONNX graph knows the activation silu, not {architecture.activation}; choose target hf."
    if architecture.head_dim % HEAD_DIM_STEP:
        yield (
            f"onnxruntime's attention takes a head_dim that is a multiple of {HEAD_DIM_STEP}, "
            f"not {architecture.head_dim}; choose target hf."
        )
    yield from _rope_problems(getattr(architecture, "rope_type", "default"))


def _rope_problems(kind: str) -> Iterator[str]:
    if kind not in FIXED_ROPE_TYPES:
        yield (
            f"Rotary scaling {kind!r} changes with the length of the text, which a stored table cannot follow; "
            f"choose target hf, or set rope_type to {' or '.join(FIXED_ROPE_TYPES[:2])}."
        )


def _wrong_groups(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    for group, names in _grouped((scheme.group_size, name) for name, scheme in schemes.items()).items():
        if group is not None and group % BLOCK_SIZES[-1]:
            yield (
                f"onnxruntime takes groups of a multiple of {BLOCK_SIZES[-1]}, and {_have(names)} "
                f"group_size={group}; use group_size=32, 64 or 128."
            )


def _grouped(pairs: Iterable[tuple[Any, str]]) -> dict[Any, list[str]]:
    grouped = defaultdict(list)
    for key, name in pairs:
        grouped[key].append(name)
    return grouped


def _have(names: list[str]) -> str:
    """`lm_head has`, or `lm_head and 3 others have`."""
    others = len(names) - 1
    return f"{names[0]} and {others} others have" if others else f"{names[0]} has"


def _rope_type(config: Mapping[str, Any]) -> str:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("rope_type") or rope.get("type") or "default"


def _notes(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.dtype == torch.float32:
        return []
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return [f"Unquantized tensors are stored as float32 (from {dtype}, exactly)."]
