"""int4 and int8 weights as AutoGPTQ and GPTQModel write them, for the many runtimes that read this format."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from compressor import __version__
from compressor.architecture import Architecture, read_config
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import InputError, RunError
from compressor.files import write_json
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact, Session
from targets.casting import float16_scales, scale_problems
from targets.packing import gptq_folder
from targets.packing.gptq_linear import Version, holds_zero, pack_linear
from targets.packing.stored import in_memory
from targets.refusals import kind_reasons, one_scheme
from targets.structure import PACKED_RULES, broken_packed_rules
from targets.vllm import RUNTIME, VllmFolder, packed_reasons


@dataclass(frozen=True)
class GptqFolder(VllmFolder):
    """Weights alone in int4 or int8, groups of 32, 64, 128 or one to a channel; desc_act is always false.

    vLLM takes symmetric ones only. Readers of the older format, gptq, disagree on a zero point of 0, which it would
    store as -1; such a weight is stored as gptq_v2 or refused.
    """

    name = "gptq"
    summary = "GPTQ folder (AutoGPTQ, GPTQModel layout), int4 or int8, for vLLM (symmetric) and transformers"
    runtime = "vLLM >= 0.10, or transformers with gptqmodel"
    reader = gptq_folder.READER
    rules = f"{PACKED_RULES}, and config.json and quantize_config.json say the same"

    checkpoint_format: Literal["auto", "gptq", "gptq_v2"] = option(
        "auto", "how zero points are stored: less by one (gptq) or as they are (gptq_v2); auto is gptq if none is 0"
    )

    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        kind = "int8" if scheme.kind == "int8" else "int4"
        yield from kind_reasons(scheme, kind, "gptq:bits=4 or gptq:bits=8")
        yield from packed_reasons(scheme, out_features, in_features)

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        return [*super().problems(architecture, schemes), *one_scheme(inner)]

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        yield from super().value_problems(checkpoint, floats)
        yield from scale_problems(checkpoint, torch.float16, "The target hf keeps them.")

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        if self.checkpoint_format != "auto":
            return super().lower(checkpoint, out, progress)
        holder = _layer_with_a_zero(checkpoint)
        if holder is None:
            return replace(self, checkpoint_format="gptq").lower(checkpoint, out, progress)
        notes = replace(self, checkpoint_format="gptq_v2").lower(checkpoint, out, progress)
        return [*notes, f"written as gptq_v2: a zero point of {holder} is 0, which gptq cannot hold"]

    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        version: Version = "gptq" if self.checkpoint_format == "gptq" else "gptq_v2"
        if version == "gptq" and holds_zero(weight):
            raise InputError(
                f"A zero point of {layer} is 0, which the format gptq cannot hold: it stores each less by one.",
                "checkpoint_format=gptq_v2 works, or the default, auto.",
            )
        parts = {**pack_linear(weight, version), "scales": float16_scales(layer, weight)}
        return {f"{layer}.{part}": tensor for part, tensor in parts.items()}

    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        settings = _settings(checkpoint, self.checkpoint_format)
        write_json(out / "quantize_config.json", settings)
        return settings

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return [*broken_packed_rules(artifact.root), *gptq_folder.broken_settings(artifact.root)]

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return in_memory(gptq_folder.read_folder(artifact.root), artifact.root)

    def open(self, artifact: Artifact, **options: Any) -> Session:
        if not read_config(artifact.root)["quantization_config"]["sym"]:
            raise RunError(f"{RUNTIME} takes symmetric folders of this format only")
        return super().open(artifact, **options)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        if config["quantization_config"]["sym"]:
            return super().run_command(path, config)
        return shlex.join(["transformers", "serve", path, "--port", "8080"])


def _settings(checkpoint: Checkpoint, checkpoint_format: str) -> dict[str, Any]:
    """What quantize_config.json and config.json say, in the spelling of transformers 5 and in that of before."""
    scheme = next(iter(checkpoint.schemes.values()))
    left_float = [
        name for name in checkpoint.architecture.linears() if name not in checkpoint.schemes and name != "lm_head"
    ]
    settings: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": -1 if scheme.group_size is None else scheme.group_size,
        "sym": scheme.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": checkpoint_format,
        "format": checkpoint_format,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"llmc:{__version__}"]},
    }
    # GPTQModel leaves a layer alone for a rule only; vLLM finds for itself what is not packed.
    return settings | {"dynamic": {f"-:^{re.escape(name)}$": {} for name in left_float}} if left_float else settings


def _layer_with_a_zero(checkpoint: Checkpoint) -> str | None:
    """The first layer with a zero point of 0; asymmetric layers are read for it, one at a time."""
    for layer, scheme in checkpoint.schemes.items():
        if scheme.symmetric:
            continue
        (weight,) = checkpoint.read([f"{layer}.weight"]).values()
        if isinstance(weight, QuantizedWeight) and holds_zero(weight):
            return layer
    return None
