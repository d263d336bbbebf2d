"""TensorRT-RTX: the ONNX of standard operators, and the engine that its builder makes of it on this machine.

The engine is the artifact, so a builder that is not installed is a refusal. It is built for GPUs that need not be here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.architecture import Architecture, resolve
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import RunError
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import Scheme
from compressor.target import Artifact, StoredTensor
from targets.onnx.folder import GRAPH, require_packages
from targets.onnx.qdq.target import QdqTarget
from targets.serving import SERVED_LENGTH
from targets.tensorrt_rtx.description import CODES, DESCRIPTION, ENGINE, PACKAGE, Description, broken_engine_rules
from targets.tensorrt_rtx.shapes import Limits, input_shapes

CAPABILITIES = (75, 80, 86, 89, 120, 121)
LARGEST_STEP = 1024  # tokens, unless asked otherwise: what a step computes on takes memory of the GPU


@dataclass(frozen=True)
class TensorRtRtx(QdqTarget):
    """What the engine targets share; subclasses say which integers they hold."""

    runtime = "TensorRT-RTX 1.7"
    reader = "onnxruntime's DequantizeLinear of the ONNX, whose bytes the engine is compared with"
    rules = "the ONNX fits together, and the engine is whole and TensorRT-RTX's"

    sm: tuple[int, ...] = option((86, 89, 120), "compute capabilities of the GPUs, as in sm=86+89+120")
    max_batch: int = option(1, "rows of a step at most")
    max_length: int | None = option(
        None, f"tokens of a row at most; none: the model's context, {SERVED_LENGTH} at most"
    )
    max_step: int | None = option(
        None, f"tokens of a row in one step at most; none: max_length, {LARGEST_STEP} at most"
    )

    def why_not_made(self) -> str | None:
        if find_spec(PACKAGE) is not None:
            return super().why_not_made()
        return "The engine is built by TensorRT-RTX, which is missing; pip install 'llmc-compiler[trtrtx]'."

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return [*self._option_problems(architecture), *super().problems(architecture, schemes)]

    def _option_problems(self, architecture: Architecture) -> Iterator[str]:
        unknown = [str(one) for one in self.sm if one not in CAPABILITIES]
        if unknown or not self.sm:
            known = "+".join(map(str, CAPABILITIES))
            yield f"TensorRT-RTX builds for sm={known} or some of these, not for {'+'.join(unknown) or 'none'}."
        limits = self._limits(architecture)
        if not 1 <= limits.length <= architecture.max_positions:
            yield f"max_length={limits.length} is not within the model's context of {architecture.max_positions}."
        if not 1 <= limits.step <= limits.length:
            yield f"max_step={limits.step} is not within max_length={limits.length}."
        if limits.batch < 1:
            yield f"max_batch={limits.batch} is no number of rows; 1 works."

    def _layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        if scheme.kind == "int8" and scheme.group_size is not None:
            # Seen with groups of 16 to 128: it unpacks them when it builds, or ends with an error of its own.
            return [
                f"TensorRT-RTX's builder does not keep int8 in groups of {scheme.group_size} as they are; "
                f"group_size=channel works, or the target {self.name.replace('trtrtx', 'onnx-qdq')}"
            ]
        return super()._layer_reasons(scheme, out_features, in_features)

    def _limits(self, architecture: Architecture) -> Limits:
        length = min(SERVED_LENGTH, architecture.max_positions) if self.max_length is None else self.max_length
        return Limits(self.max_batch, length, min(LARGEST_STEP, length) if self.max_step is None else self.max_step)

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        notes = super().lower(checkpoint, out, progress)
        from targets.tensorrt_rtx import builder, engine

        shapes = input_shapes(checkpoint.architecture, self._limits(checkpoint.architecture))
        builder.build(out / GRAPH, out / ENGINE, self.sm, shapes, progress)
        tensors = engine.stored_tensors(out)
        places = engine.find(out, out / ENGINE, tensors)
        lost = [name for name in tensors if name not in places]
        changed = [name for name in lost if name.endswith(CODES)]
        if changed:
            raise RunError(
                f"The engine of TensorRT-RTX {builder.VERSION} does not hold the integers of {changed[0]} as they are "
                f"({len(changed) - 1} more are like it), so that they cannot be compared.",
                f"The target {self.name.replace('trtrtx', 'onnx-qdq')} writes the ONNX alone.",
            )
        description = Description(builder.VERSION, self.sm, shapes, (out / ENGINE).stat().st_size, places)
        description.write(out)
        return [*notes, description.sentence, *_lost_note(lost)]

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        """The weights of the ONNX, once the engine has been compared with it."""
        require_packages()
        from targets.tensorrt_rtx import engine

        places = Description.read(artifact.root).weights
        for name, tensor in engine.stored_tensors(artifact.root).items():
            if name not in places and name.endswith(CODES):
                raise RunError(f"{DESCRIPTION} does not say where {name} lies in the engine.")
            if name in places and not engine.lies_at(artifact.root, artifact.root / ENGINE, tensor, places[name]):
                raise RunError(f"The engine holds another {name} than the ONNX beside it.")
        yield from super().read_back(artifact)

    def stored_tensors(self, artifact: Artifact) -> Iterator[StoredTensor]:
        yield from super().stored_tensors(artifact)
        for name, place in Description.read(artifact.root).weights.items():
            yield StoredTensor(ENGINE, name, place.offset, place.offset + place.span)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return [*super().broken_rules(artifact), *broken_engine_rules(artifact.root)]

    def why_not_run(self) -> str | None:
        return "TensorRT-RTX needs an NVIDIA GPU; the engine was built and its bytes were compared, it was not run"

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        """The line for NVIDIA's own tool, which times a step of one token."""
        architecture = resolve(config)
        shapes = input_shapes(architecture, self._limits(architecture))
        usual = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, (_, shape, _) in shapes.items())
        return shlex.join(["tensorrt_rtx", f"--loadEngine={path}/{ENGINE}", f"--shapes={usual}"])


@dataclass(frozen=True)
class TrtRtxInt4(TensorRtRtx):
    """int4 weights, symmetric, some layers int8."""

    name = "trtrtx-int4"
    summary = "int4 weights in a TensorRT-RTX engine, built here without a GPU, and its ONNX"
    preset = ("gptq:bits=4",)
    kinds = ("int4", "int8")
    taker = "trtrtx-int8"


@dataclass(frozen=True)
class TrtRtxInt8(TensorRtRtx):
    """int8 weights, symmetric; with static int8 activations too, where a pass chose a scale for them."""

    name = "trtrtx-int8"
    summary = "int8 weights, or W8A8 static, in a TensorRT-RTX engine, built here without a GPU, and its ONNX"
    preset = ("gptq:bits=8,group_size=channel",)
    kinds = ("int8",)
    taker = "trtrtx-int4"


def _lost_note(lost: list[str]) -> list[str]:
    if not lost:
        return []
    return [f"{len(lost)} tensors lie in the engine in another form, which was not compared: {lost[0]} first"]
