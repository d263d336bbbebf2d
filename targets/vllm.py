"""Folders that vLLM serves, and its own four: int4, W8A8, fp8 and NVFP4 weights in the layouts of compressed-tensors.

What is refused is what vLLM 0.32 has no kernel for, or reads as something else: vllm-project/vllm,
model_executor/layers/quantization (compressed_tensors, auto_gptq.py, auto_awq.py) and model_executor/kernels/linear.
"""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from compressor import layout
from compressor.architecture import Architecture, read_config
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact, Rounding, Runtime, Session, Tolerance
from targets.engines import VLLM
from targets.engines.cpu_build import FP8_CACHE, missing_kernel
from targets.packing import compressed_folder
from targets.packing.stored import in_memory
from targets.refusals import kind_reasons, refusals
from targets.served import ServedFolder
from targets.serving import length_option
from targets.structure import CHECKPOINT_RULES, broken_checkpoint_rules
from targets.tolerances import BY_DTYPE, ROUNDED, ROUNDED_TO_FOUR

RUNTIME = "vLLM"
GROUP_SIZES = (128, 64, 32)
HEADS_FILL_WIDTH = frozenset({"qwen2"})  # vLLM derives their head_dim, whatever config.json says
TRANSPOSED = "the targets vllm-int4 and gptq"
# Scales that layers have to share which become one matrix, and what works otherwise.
ONE_IF_FUSED = {
    "input_scale": "activations=dynamic works, and so do static scales made by llmc",
    "tensor_scale": "Start from the float checkpoint: the pass nvfp4 gives them one",
}


@dataclass(frozen=True)
class VllmFolder(ServedFolder):
    """What all folders for vLLM share, whatever their layout; subclasses say which layers it has kernels for."""

    runtime = "vLLM >= 0.10"
    engine = VLLM
    kind: ClassVar[str] = "int4"  # of its weights
    takes_transposed: ClassVar[bool] = True  # linears that float checkpoints store [in_features, out_features]

    @abstractmethod
    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        """Why a layer of this scheme and shape is not taken, each reason with what works."""

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        found = refusals(RUNTIME, self.layer_reasons, architecture, inner, self.preset[-1])
        if architecture.transposed and not self.takes_transposed:
            found.append(f"{self.name} has no form for the Conv1D of {architecture.model_type}; {TRANSPOSED} work.")
        width = architecture.heads * architecture.head_dim
        if architecture.model_type in HEADS_FILL_WIDTH and width != architecture.hidden_size:
            found.append(
                f"{RUNTIME} takes a {architecture.model_type} model's {architecture.heads} heads for as wide as its "
                f"hidden size {architecture.hidden_size}; prune-width:parts=mlp keeps them."
            )
        if "lm_head" in schemes:
            found.append(f"lm_head: a quantized head is not served by {RUNTIME} for every model; lm_head=false works.")
        return found

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        return served_tolerance(read_config(artifact.root))

    def rounding(self, artifact: Artifact, **options: Any) -> Rounding:
        return served_rounding(read_config(artifact.root))

    def why_not_run(self) -> str | None:
        return VLLM.why_missing() or missing_kernel({self.kind})

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Serve it with vLLM, in the environment of that."""
        return _serve(artifact)

    def runtimes(self, artifact: Artifact) -> tuple[Runtime, ...]:
        return (replace(vllm_runtime(artifact, {self.kind}), open=partial(self.open, artifact)),)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        length = length_option("--max-model-len", config)
        return shlex.join(["vllm", "serve", path, "--port", "8000", "--dtype", config["dtype"], *length])


@dataclass(frozen=True)
class CompressedTensors(VllmFolder):
    """Folders in the layouts that steps have too, read back by the library they are named after."""

    reader = compressed_folder.READER
    rules = CHECKPOINT_RULES

    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {f"{layer}.{part}": tensor for part, tensor in layout.encode(weight, dtype).items()}

    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        linears = checkpoint.architecture.linears()
        return layout.quantization_config(checkpoint.schemes, linears, checkpoint.kv_cache)

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return in_memory(compressed_folder.read_folder(artifact.root), artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return broken_checkpoint_rules(artifact.root)


@dataclass(frozen=True)
class VllmInt4(CompressedTensors):
    """W4A16: int4 weights in groups of 32, 64, 128 or one to a channel, 16-bit activations."""

    name = "vllm-int4"
    summary = "int4 weights for vLLM (compressed-tensors, pack-quantized)"

    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        yield from kind_reasons(scheme, "int4", "gptq:bits=4 or the target hf")
        yield from packed_reasons(scheme, out_features, in_features)


@dataclass(frozen=True)
class _EightBits(CompressedTensors):
    """Weights and activations of eight bits. Their scales are read in float32, those of a fused input as one."""

    scales_are_served_in_dtype = False
    takes_transposed = False  # whatever is called `weight` is taken for transposed when such a model is loaded

    def check_block(self, block: Block, architecture: Architecture) -> None:
        check_fused_scales(block, architecture)


@dataclass(frozen=True)
class VllmInt8(_EightBits):
    """W8A8: int8 weights, one scale a channel; inputs in int8, one scale a token or a static one a layer."""

    name = "vllm-int8"
    kind = "int8"
    summary = "int8 weights and activations for vLLM (compressed-tensors, int-quantized)"
    preset = ("smoothquant:alpha=0.8", "gptq:bits=8,group_size=channel,activations=dynamic")

    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        if scheme.kind != "int8":
            yield f"{scheme.kind} is not what this target holds; {self.preset[-1]} works"
        elif scheme.activations is None:
            yield "int8 weights alone are for the target gptq; here activations=dynamic works"
        elif scheme.activations.type != "int":
            yield f"{scheme.activations} under int8 weights have no kernel in {RUNTIME}; activations=dynamic works"
        elif scheme.group_size is not None or not scheme.symmetric:
            yield f"{scheme} has no kernel in {RUNTIME}; group_size=channel,symmetric=true works"


@dataclass(frozen=True)
class VllmFp8(_EightBits):
    """fp8 (e4m3) weights, one scale a channel; inputs in fp8 or left alone; an fp8 key-value cache if it has scales."""

    name = "vllm-fp8"
    kind = "fp8"
    summary = "fp8 weights, activations and key-value cache for vLLM (compressed-tensors, float-quantized)"
    preset = ("fp8",)
    holds_cache_scales = True

    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        if scheme.kind != "fp8":
            yield f"{scheme.kind} is not what this target holds; {self.preset[-1]} works"
        elif scheme.activations is not None and scheme.activations.type != "float":
            yield f"{scheme.activations} under fp8 weights have no kernel in {RUNTIME}; fp8:activations=dynamic works"


@dataclass(frozen=True)
class VllmNvfp4(CompressedTensors):
    """NVFP4 weights, and inputs in NVFP4 or left alone; an fp8 key-value cache if it has scales."""

    name = "vllm-nvfp4"
    kind = "nvfp4"
    summary = "NVFP4 weights, activations too if they have scales, for vLLM (compressed-tensors, nvfp4-pack-quantized)"
    preset = ("nvfp4",)
    runtime = "vLLM >= 0.14"
    holds_cache_scales = True

    def layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        if scheme.kind != "nvfp4":
            yield f"{scheme.kind} is not what this target holds; {self.preset[-1]} works"

    def check_block(self, block: Block, architecture: Architecture) -> None:
        check_fused_scales(block, architecture)


def check_fused_scales(block: Block, architecture: Architecture) -> None:
    """See that layers which vLLM makes one of share the scale of their inputs, and that of an NVFP4 tensor.

    Raises:
        InputError: they do not.
    """
    for group in architecture.fused_linears(block.index) if block.index is not None else ():
        weights = [weight for name in group if isinstance(weight := block.weights[f"{name}.weight"], QuantizedWeight)]
        for part, works in ONE_IF_FUSED.items():
            scales = {float(scale) for weight in weights if (scale := getattr(weight, part)) is not None}
            if len(scales) > 1:
                names = "/".join(layer.rpartition(".")[2] for layer in group)
                raise InputError(
                    f"{RUNTIME} reads one {part.replace('_', ' ')} for {names} of {block.name}, and theirs differ.",
                    f"{works}.",
                )


def vllm_runtime(artifact: Artifact, kinds: Collection[str]) -> Runtime:
    """vLLM, serving a folder whichever target wrote it, with weights of these kinds."""
    config = read_config(artifact.root)
    tolerance, rounding = served_tolerance(config), served_rounding(config)
    cache = {FP8_CACHE} if layout.reads_kv_cache(config) else set()
    why_not = VLLM.why_missing() or missing_kernel({*kinds, *cache})
    return Runtime(VllmFolder.runtime, why_not, partial(_serve, artifact), tolerance, rounding=rounding)


def _serve(artifact: Artifact) -> Session:
    from targets.engines.vllm_session import VllmSession

    return VllmSession(artifact.root)


def served_tolerance(config: Mapping[str, Any]) -> Tolerance:
    """How far apart the logits of a served folder may be, by its config.json."""
    from targets.engines.vllm_session import served_dtype

    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    bits = {inputs["num_bits"] for group in groups if (inputs := group.get("input_activations"))}
    if 4 in bits:
        return ROUNDED_TO_FOUR
    return ROUNDED if bits or layout.reads_kv_cache(config) else BY_DTYPE[getattr(torch, served_dtype(config))]


def served_rounding(config: Mapping[str, Any]) -> Rounding:
    """What vLLM rounds when it serves a folder with this config.json."""
    from targets.engines.vllm_session import served_dtype

    return Rounding(served_dtype(config))


def packed_reasons(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
    """Why the kernels for packed weights do not take a layer of this group size and shape."""
    if scheme.group_size is not None and scheme.group_size not in GROUP_SIZES:
        fitting = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
        yield f"group {scheme.group_size} has no kernel in {RUNTIME}; group_size {fitting or 'channel'} works"
    if in_features % 32 or out_features % 32:
        shape = f"[{out_features}, {in_features}]"
        yield f"{shape} is no multiple of 32 both ways, which {RUNTIME}'s kernels need; skip these layers"
