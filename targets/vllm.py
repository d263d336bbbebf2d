"""int4 weights for vLLM, as a compressed-tensors pack-quantized folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor import layout
from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact
from targets.packing import compressed_folder
from targets.refusals import kind_reasons, refusals
from targets.served import ServedFolder
from targets.serving import length_option
from targets.structure import CHECKPOINT_RULES, broken_checkpoint_rules

RUNTIME = "vLLM"
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class VllmInt4(ServedFolder):
    """W4A16: int4 weights in groups of 32, 64, 128 or one to a channel, 16-bit activations."""

    name = "vllm-int4"
    summary = "int4 weights for vLLM (compressed-tensors, pack-quantized)"
    runtime = "vLLM >= 0.10"
    reader = compressed_folder.READER
    rules = CHECKPOINT_RULES

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        found = refusals(RUNTIME, _layer_reasons, architecture, inner)
        if "lm_head" in schemes:
            found.append(f"lm_head: a quantized head is not served by {RUNTIME} for every model; lm_head=false works.")
        return found

    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {f"{layer}.{part}": tensor for part, tensor in layout.encode(weight, dtype).items()}

    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        return layout.quantization_config(checkpoint.schemes, checkpoint.architecture.linears())

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return compressed_folder.read_folder(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return broken_checkpoint_rules(artifact.root)

    def why_not_run(self) -> str | None:
        return f"{RUNTIME} wants an environment of its own, which benchmarks/vllm_parity.py makes"

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        length = length_option("--max-model-len", config)
        return shlex.join(["vllm", "serve", path, "--port", "8000", "--dtype", config["dtype"], *length])


def _layer_reasons(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
    yield from kind_reasons(scheme, "int4", "gptq:bits=4 or the target hf")
    if scheme.group_size is not None and scheme.group_size not in GROUP_SIZES:
        fitting = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
        yield f"group {scheme.group_size} has no kernel in {RUNTIME}; group_size {fitting or 'channel'} works"
    if in_features % 32 or out_features % 32:
        shape = f"[{out_features}, {in_features}]"
        yield f"{shape} is no multiple of 32 both ways, which {RUNTIME}'s kernels need; skip these layers"
