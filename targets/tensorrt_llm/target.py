"""int4 weights for TensorRT-LLM's PyTorch backend, as a ModelOpt unified checkpoint of kind W4A16_AWQ.

The kind is named after AWQ, but any symmetric int4 integers with group scales fit it: what is AWQ's own, the
activation scale, is ones where the loader insists on it. Being written without a GPU, the folder is checked against
the loader's rules (rules.py) and its integers are read back by a reader written from the layout's text (reader.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor import __version__
from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import RunError
from compressor.files import write_json
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact
from targets.packing.output_pairs import pack_output_pairs
from targets.refusals import kind_reasons, refusals
from targets.served import ServedFolder
from targets.serving import length_option
from targets.tensorrt_llm.reader import read_activation_scales, read_folder
from targets.tensorrt_llm.rules import check_loadable

RUNTIME = "TensorRT-LLM"
GROUP_SIZES = (128, 64)
SERVING_OPTIONS = "--host 0.0.0.0 --port 8000 --tp_size 1 --max_batch_size 8 --max_num_tokens 8192"
MEMORY_OPTION = "--kv_cache_free_gpu_memory_fraction 0.9"
# Linears that the runtime does not fuse: their loader reads an activation scale and fails without one.
UNFUSED = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class TrtInt4(ServedFolder):
    """W4A16: int4 weights in groups of 64 or 128, 16-bit activations."""

    name = "trt-int4"
    summary = "int4 weights for TensorRT-LLM (ModelOpt unified checkpoint, W4A16_AWQ)"
    runtime = "TensorRT-LLM >= 1.2"
    reader = "unpacker written from the layout's text (numpy)"
    rules = "TensorRT-LLM's loader, as modelled here, would take it"

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        found = refusals(RUNTIME, _layer_reasons, architecture, inner)
        if "lm_head" in schemes:
            found.append(f"lm_head: {RUNTIME} serves no quantized head; lm_head=false works.")
        sizes = sorted({scheme.group_size for scheme in inner.values() if scheme.group_size in GROUP_SIZES})
        if len(sizes) > 1:
            found.append(f"Layers have groups of {sizes[0]} and of {sizes[1]}; one group_size for all layers works.")
        return found

    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        tensors = {f"{layer}.weight": pack_output_pairs(weight.codes), f"{layer}.weight_scale": weight.scales}
        if layer.endswith(UNFUSED):
            tensors[f"{layer}.pre_quant_scale"] = torch.ones(weight.codes.shape[1], dtype=dtype)
        return tensors

    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        group_size = next(scheme.group_size for scheme in checkpoint.schemes.values())
        float_linears = [name for name in checkpoint.architecture.linears() if name not in checkpoint.schemes]
        producer = {"name": "llmc", "version": __version__}
        nested: dict[str, Any] = {
            "quant_algo": "W4A16_AWQ",
            "kv_cache_quant_algo": None,
            "group_size": group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "exclude_modules": float_linears,
        }
        write_json(out / "hf_quant_config.json", {"producer": producer, "quantization": nested})
        # The flat copy repeats what the loader compares with the file above; ModelOpt's own leaves group_size out.
        return {
            "quant_method": "modelopt",
            "quant_algo": "W4A16_AWQ",
            "group_size": group_size,
            "ignore": float_linears,
            "producer": producer,
        }

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        notes = super().lower(checkpoint, out, progress)
        _refuse_unloadable(out)
        ones = sum(name.endswith(UNFUSED) for name in checkpoint.schemes)
        added = f"{ones} activation scales of ones added, which {RUNTIME} wants on o_proj and down_proj"
        return [*notes, added] if ones else notes

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        for layer, scales in read_activation_scales(artifact.root):
            if not bool((scales == 1).all()):
                raise RunError(f"The activation scale of {layer} is not ones, so its weight is not what was lowered.")
        yield from read_folder(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return check_loadable(artifact.root)

    def why_not_run(self) -> str | None:
        return f"{RUNTIME} needs an NVIDIA GPU; its loader's rules were checked, loading was not"

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        length = length_option("--max_seq_len", config)
        return shlex.join(["trtllm-serve", path, *SERVING_OPTIONS.split(), *length, *MEMORY_OPTION.split()])


def _layer_reasons(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
    yield from kind_reasons(scheme, "int4", "gptq:bits=4")
    if not scheme.symmetric:
        yield f"zero points are not read by {RUNTIME}; symmetric=true works"
    if in_features % 64:
        yield f"the input width {in_features} is no multiple of 64, which {RUNTIME} needs; skip these layers"
    elif scheme.group_size not in GROUP_SIZES:
        size = "one scale per channel" if scheme.group_size is None else f"group {scheme.group_size}"
        fitting = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
        yield f"{size} is not served by {RUNTIME}; group_size {fitting} works"
    if out_features % 16:
        yield f"the output width {out_features} is no multiple of 16, which {RUNTIME} needs; skip these layers"


def _refuse_unloadable(folder: Path) -> None:
    broken = check_loadable(folder)
    if broken:
        more = f" ({len(broken) - 1} more rules are broken)" if len(broken) > 1 else ""
        raise RunError(
            f"{RUNTIME} would not load what was written: {broken[0]}{more}", "This is a fault of the target."
        )
