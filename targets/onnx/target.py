"""The ONNX Runtime targets: one graph, with its linears in float32, int8 or int4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import InputError, MissingExtra
from compressor.files import write_json
from compressor.pass_ import Progress, option
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact, Session, Target, Variant
from targets.onnx.plan import BLOCK_SIZES, block_size

ACCURACY_LEVELS = (0, 1, 4)
EXACT_LEVEL = 0
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

        _check_rope(checkpoint.config)
        model = graph.build(checkpoint.architecture, checkpoint.schemes, self._level())
        with weights.DataFile(out) as data:
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
        return (
            'python -c "import onnxruntime_genai as og; '
            f"m = og.Model('{artifact}'); t = og.Tokenizer(m); p = og.GeneratorParams(m); "
            "p.set_search_options(max_length=100); g = og.Generator(m, p); g.append_tokens(t.encode('Once upon a time')); "
            '[g.generate_next_token() for _ in iter(g.is_done, True)]; print(t.decode(g.get_sequence(0)))"'
        )


@dataclass(frozen=True)
class OnnxFp32(_Onnx):
    """The model as it is, in float32: the baseline of the other two."""

    name: ClassVar[str] = "onnx-fp32"
    summary: ClassVar[str] = "ONNX Runtime, float32 weights"

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> list[str]:
        if not schemes:
            return []
        return [f"onnx-fp32 takes no quantized weights; choose onnx-int{_any_bits(schemes)}, or drop the quantizing pass."]


@dataclass(frozen=True)
class _Quantized(_Onnx):
    baseline: ClassVar[str | None] = "onnx-fp32"

    def _scheme_problems(self, schemes: Mapping[str, Scheme]) -> list[str]:
        if not any(name.startswith("model.layers.") for name in schemes):
            return [f"{self.name} needs int{self.bits} weights; add a quantizing pass such as {self.preset[0]}."]
        return [*self._wrong_bits(schemes), *_wrong_groups(schemes)]

    def _wrong_bits(self, schemes: Mapping[str, Scheme]) -> Iterator[str]:
        for bits, names in _by(schemes, "bits").items():
            if bits != self.bits:
                yield (
                    f"{self.name} takes int{self.bits} weights, and {_some(names)} int{bits}; "
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
        yield f"The ONNX graph knows the activation silu, not {architecture.activation}; choose another target."
    if architecture.head_dim % 8:
        yield f"onnxruntime's attention needs a head_dim that is a multiple of 8, not {architecture.head_dim}; choose another target."


def _wrong_groups(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    for scheme, names in _by(schemes, None).items():
        if scheme.group_size is not None and not block_size(scheme, 0):
            yield (
                f"onnxruntime takes groups that are a multiple of {BLOCK_SIZES[-1]}, and {_some(names)} "
                f"group_size={scheme.group_size}; use group_size=32, 64 or 128."
            )


def _by(schemes: Mapping[str, Scheme], attribute: str | None) -> dict[Any, list[str]]:
    grouped: dict[Any, list[str]] = {}
    for name, scheme in schemes.items():
        grouped.setdefault(getattr(scheme, attribute) if attribute else scheme, []).append(name)
    return grouped


def _some(names: list[str]) -> str:
    """`model.layers.0.mlp.up_proj has`, `model.layers.0.mlp.up_proj and 3 others have`."""
    others = len(names) - 1
    return f"{names[0]} has" if not others else f"{names[0]} and {others} others have"


def _any_bits(schemes: Mapping[str, Scheme]) -> int:
    return next(iter(schemes.values())).bits


def _check_rope(config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in FIXED_ROPE_TYPES:
        raise InputError(
            f"Rotary scaling {kind!r} changes with the length of the text, which a stored table cannot follow.",
            f"The ONNX targets take {', '.join(FIXED_ROPE_TYPES)}.",
        )


def _notes(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.dtype == torch.float32:
        return []
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return [f"Unquantized tensors are stored as float32 (from {dtype}, exactly)."]
