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
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.files import write_json
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact, Target
from compressor.writer import ShardWriter, copy_companions
from targets.casting import DTYPE_HELP, Caster, ServedDtype, cast, served_config
from targets.packing import pack_quantized
from targets.refusals import refusals
from targets.serving import length_option

RUNTIME = "vLLM"
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class VllmInt4(Target):
    """W4A16: int4 weights in groups of 32, 64, 128 or one to a channel, 16-bit activations."""

    name = "vllm-int4"
    summary = "int4 weights for vLLM (compressed-tensors, pack-quantized)"
    runtime = "vLLM >= 0.10"
    preset = ("gptq:bits=4",)
    reader = pack_quantized.READER

    dtype: ServedDtype = option("auto", DTYPE_HELP)

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        found = refusals(RUNTIME, _layer_reasons, architecture, inner)
        if "lm_head" in schemes:
            found.append(f"lm_head: a quantized head is not served by {RUNTIME} for every model; lm_head=false works.")
        return found

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        caster, shards = Caster(self.dtype, checkpoint), ShardWriter(out)
        total = len(checkpoint.block_names)
        for done, block in enumerate(checkpoint.blocks()):
            progress("writing", done, total)
            shards.add(_stored_block(block, caster))
        shards.finish()
        quantization = layout.quantization_config(checkpoint.schemes, checkpoint.architecture.linears())
        config = served_config(checkpoint, caster.dtype) | {"quantization_config": quantization}
        write_json(out / "config.json", config)
        copy_companions(checkpoint.root, out)
        progress("writing", total, total)
        return caster.notes

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return pack_quantized.read_folder(artifact.root)

    def expected(self, name: str, weight: Weight) -> Weight:
        return cast(self.dtype, weight)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        length = length_option("--max-model-len", config)
        return shlex.join(["vllm", "serve", path, "--port", "8000", "--dtype", config["dtype"], *length])


def _layer_reasons(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
    if scheme.bits != 4:
        yield f"int{scheme.bits} is not what this target holds; bits=4 works, or the target hf"
    if scheme.group_size is not None and scheme.group_size not in GROUP_SIZES:
        fitting = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
        yield f"group {scheme.group_size} has no kernel in {RUNTIME}; group_size {fitting or 'channel'} works"
    if in_features % 32 or out_features % 32:
        shape = f"[{out_features}, {in_features}]"
        yield f"{shape} is no multiple of 32 both ways, which {RUNTIME}'s kernels need; skip these layers"


def _stored_block(block: Block, caster: Caster) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in block.weights.items():
        if isinstance(weight, QuantizedWeight):
            layer = name.removesuffix(".weight")
            caster.check_scales(layer, weight)
            tensors |= {f"{layer}.{part}": tensor for part, tensor in layout.encode(weight, caster.dtype).items()}
        else:
            tensors[name] = caster.tensor(name, weight)
    return tensors
