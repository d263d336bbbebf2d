"""Quantized models for TensorRT-LLM's PyTorch backend, as ModelOpt's unified checkpoints.

Being written without a GPU, a folder is checked against the loader's rules (rules.py), and its numbers are read back
by a reader written from the layout's text (reader.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import RunError
from compressor.families import CACHE_SCALES
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact
from targets.casting import (
    Caster,
    cast_dtype,
    dtype_name,
    factor_problems,
    layer_with_scales_beyond,
    layers_with_other_scales,
    other_half,
)
from targets.refusals import refusals
from targets.served import ServedFolder
from targets.serving import length_option
from targets.tensorrt_llm import algorithms
from targets.tensorrt_llm.algorithms import RUNTIME, UNFUSED
from targets.tensorrt_llm.config import write_config
from targets.tensorrt_llm.fusing import check_fused
from targets.tensorrt_llm.reader import read_folder
from targets.tensorrt_llm.rules import check_loadable

SERVING_OPTIONS = "--host 0.0.0.0 --port 8000 --tp_size 1 --max_batch_size 8 --max_num_tokens 8192"
MEMORY_OPTION = "--kv_cache_free_gpu_memory_fraction 0.9"
# tensorrt_llm/_torch/models/_arch_index.py
CLASSES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
)
TAKERS = {"int4": "trt-int4", "int8": "trt-int8", "fp8": "trt-fp8", "nvfp4": "trt-nvfp4"}
# tensorrt_llm/_torch/modules/attention.py hands the scales of an NVFP4 cache to its kernels, those of fp8 to none.
CACHE_NOTE = (
    f"the scales of the fp8 key-value cache are stored where {RUNTIME} and TensorRT-Edge-LLM load them; the attention "
    f"of {RUNTIME} was seen to take 1 for an fp8 cache whatever is stored"
)
WEIGHTS_ONLY_NOTE = (
    f"W4A16_NVFP4, weights alone, is served by {RUNTIME} later than 1.2 (its pull request 16511, July 2026); "
    "nvfp4:activations=static makes NVFP4, which 1.2 serves"
)


@dataclass(frozen=True)
class _TensorRTLLM(ServedFolder):
    kind: ClassVar[str]
    beside: ClassVar[tuple[str, ...]] = ()  # kinds that some layers may have, next to others of its own

    runtime = "TensorRT-LLM >= 1.2"
    reader = "unpacker written from the layout's text (numpy)"
    rules = "TensorRT-LLM's loader, as modelled here, would take it"
    scales_are_served_in_dtype = False  # its folders hold float32; the loader casts those of integers, see below

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        inner = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
        taken = (self.kind, *self.beside) if any(one.kind == self.kind for one in inner.values()) else (self.kind,)

        def reasons(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
            if scheme.kind in taken:
                return algorithms.layer_reasons(scheme, out_features, in_features)
            other = TAKERS.get(scheme.kind, "hf")
            return [f"{scheme.kind} is not what this target holds; {self.preset[0]} works, or the target {other}"]

        found = refusals(RUNTIME, reasons, architecture, inner)
        found += [*_model_problems(architecture), *_stacked_problems(architecture, inner), *_factor_problems(inner)]
        if "lm_head" in schemes:
            found.append(f"lm_head: {RUNTIME} serves no quantized head; lm_head=false works.")
        return found

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        yield from super().value_problems(checkpoint, floats)
        dtype = cast_dtype(self.dtype, checkpoint.dtype)
        other = other_half(dtype)
        works = f"dtype={dtype_name(other)} works."
        if (beyond := layer_with_scales_beyond(checkpoint, dtype)) is not None:
            yield f"The scales of {beyond} are beyond {dtype_name(dtype)}, in which they are served. {works}"
        # Where neither dtype holds them, as of most folders that ModelOpt makes, the loader rounds them in any case.
        elif (rounded := _rounded_scales(checkpoint, dtype)) and not _rounded_scales(checkpoint, other):
            yield f"The scales of {rounded[0]} are not exact in {dtype_name(dtype)}, in which they are served. {works}"
        yield from factor_problems(checkpoint, dtype, works)

    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return algorithms.stored_linear(layer, weight, dtype)

    def stored_block(
        self, block: Block, architecture: Architecture, caster: Caster
    ) -> Iterator[tuple[str, torch.Tensor]]:
        check_fused(block, architecture, caster.dtype)
        cache = {name: weight for name, weight in block.weights.items() if name.endswith(CACHE_SCALES)}
        rest = {name: weight for name, weight in block.weights.items() if name not in cache}
        yield from super().stored_block(replace(block, weights=rest), architecture, caster)
        for name, scale in cache.items():
            assert isinstance(scale, torch.Tensor)
            yield _stored_cache_scale(name), scale.float().reshape(())

    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        return write_config(checkpoint.schemes, checkpoint.architecture.linears(), checkpoint.kv_cache, out)

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        notes = super().lower(checkpoint, out, progress)
        _refuse_unloadable(out)
        unfused = [one for name, one in checkpoint.schemes.items() if one.kind == "int4" and name.endswith(UNFUSED)]
        ones = sum(not scheme.input_factors for scheme in unfused)
        if ones:
            notes.append(f"{ones} activation scales of ones added, which {RUNTIME} wants on o_proj and down_proj")
        served = cast_dtype(self.dtype, checkpoint.dtype)
        if rounded := len(_rounded_scales(checkpoint, served)):
            inexact = f"the scales of {rounded} layers are not exact in {dtype_name(served)}"
            notes.append(f"{inexact}; they are stored as they are, and {RUNTIME} casts them when it loads them")
        return [*notes, CACHE_NOTE] if checkpoint.kv_cache else notes

    def expected(self, name: str, weight: Weight, architecture: Architecture) -> Weight:
        if name.endswith(CACHE_SCALES) and isinstance(weight, torch.Tensor):
            return weight.float()
        return super().expected(name, weight, architecture)

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return read_folder(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return check_loadable(artifact.root)

    def why_not_run(self) -> str | None:
        return f"{RUNTIME} needs an NVIDIA GPU; its loader's rules were checked, loading was not"

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        length = length_option("--max_seq_len", config)
        return shlex.join(["trtllm-serve", path, *SERVING_OPTIONS.split(), *length, *MEMORY_OPTION.split()])


@dataclass(frozen=True)
class TrtInt4(_TensorRTLLM):
    """W4A16: int4 weights in groups of 64 or 128, 16-bit activations; some layers may be int8 or fp8."""

    name = "trt-int4"
    summary = "int4 weights for TensorRT-LLM (ModelOpt unified checkpoint, W4A16_AWQ)"
    kind = "int4"
    beside = ("int8", "fp8")
    holds = frozenset({"input_factors"})


@dataclass(frozen=True)
class TrtInt8(_TensorRTLLM):
    """W8A16: int8 weights with one scale a channel, 16-bit activations."""

    name = "trt-int8"
    summary = "int8 weights for TensorRT-LLM (ModelOpt unified checkpoint, W8A16)"
    preset = ("gptq:bits=8,group_size=channel",)
    kind = "int8"


@dataclass(frozen=True)
class TrtFp8(_TensorRTLLM):
    """fp8 weights and activations, with one scale a tensor each; or a scale a channel and a token, for Hopper."""

    name = "trt-fp8"
    summary = "fp8 weights and activations for TensorRT-LLM (ModelOpt unified checkpoint, FP8)"
    preset = ("fp8:activations=static,scales=tensor",)
    kind = "fp8"
    holds_cache_scales = True

    def cache_problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return _cache_problems(architecture, schemes, self.preset[0])


@dataclass(frozen=True)
class TrtNvfp4(_TensorRTLLM):
    """NVFP4 weights and activations, for Blackwell, or weights alone; some layers may be fp8."""

    name = "trt-nvfp4"
    summary = "NVFP4 weights and activations for TensorRT-LLM (ModelOpt unified checkpoint, NVFP4 or W4A16_NVFP4)"
    preset = ("nvfp4:activations=static",)
    kind = "nvfp4"
    beside = ("fp8",)  # integers have no kernels on most GPUs that NVFP4 is for
    holds_cache_scales = True

    def cache_problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return _cache_problems(architecture, schemes, self.preset[0])

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        notes = super().lower(checkpoint, out, progress)
        weights_only = any(not scheme.activations for scheme in checkpoint.schemes.values())
        return [*notes, WEIGHTS_ONLY_NOTE] if weights_only else notes


def _cache_problems(architecture: Architecture, schemes: Mapping[str, Scheme], works: str) -> list[str]:
    projections = [name for name in architecture.linears() if name.endswith(("k_proj", "v_proj"))]
    if not projections:
        return [f"{RUNTIME} loads no cache scales beside stacked q, k and v; kv_cache=false works."]
    if all(name in schemes and _loads_cache_scales(schemes[name]) for name in projections):
        return []
    return [
        f"{RUNTIME} loads the scales of an fp8 key-value cache beside fp8 weights with one scale a tensor, and NVFP4 "
        f"with activations, only; {works} works, and so does kv_cache=false."
    ]


def _loads_cache_scales(scheme: Scheme) -> bool:
    return scheme.per_tensor or (scheme.kind == "nvfp4" and scheme.activations is not None)


def _model_problems(architecture: Architecture) -> Iterator[str]:
    """Why the runtime would not compute what a model of this shape computes."""
    if architecture.class_name not in CLASSES:
        yield f"{RUNTIME} has no {architecture.class_name}; the target vllm-int4 works."
    elif architecture.logit_softcap is not None:
        yield f"{RUNTIME} leaves out the soft-capping of logits; the target vllm-int4 works."
    elif architecture.norm_shift and architecture.qkv_bias:
        yield f"{RUNTIME} gives the attention of a {architecture.class_name} no biases; the target vllm-int4 works."


def _rounded_scales(checkpoint: Checkpoint, dtype: torch.dtype) -> list[str]:
    """The layers whose scales the loader rounds, since it casts those of integers to the dtype of the model."""
    return [one for one in layers_with_other_scales(checkpoint, dtype) if checkpoint.schemes[one].type == "int"]


def _factor_problems(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    for name, scheme in schemes.items():
        if scheme.input_factors and not (scheme.kind == "int4" and name.endswith(UNFUSED)):
            yield f"{name}: {RUNTIME} multiplies inputs (pre_quant_scale) of int4 o_proj and down_proj only."
            return


def _stacked_problems(architecture: Architecture, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Why layers that stack q, k and v, or gate and up, would be taken apart wrongly.

    The loader cuts `weight` and `weight_scale` at the rows of a float weight (modeling_phi3.py): packed pairs of rows
    and one scale a row are cut elsewhere, or break it.
    """
    if architecture.class_name not in CLASSES:
        return
    stacked = [name for branch in architecture.modules.branches if len(branch.first) == 1 for name in branch.first]
    layers = {name: scheme for name, scheme in schemes.items() if name.endswith(tuple(stacked))} if stacked else {}
    for name, scheme in layers.items():
        if not (scheme.per_tensor or scheme.kind == "nvfp4"):
            yield (
                f"{name}: {RUNTIME} takes stacked linears apart in FP8 with one scale a tensor and in NVFP4 only; "
                "the targets trt-fp8 and trt-nvfp4 work."
            )
            return
    if layers and architecture.heads * architecture.head_dim != architecture.hidden_size:
        yield f"{next(iter(layers))}: {RUNTIME} takes the queries for as wide as the hidden size; the target hf works."


def _stored_cache_scale(name: str) -> str:
    """`self_attn.k_scale` as ModelOpt names it: `self_attn.k_proj.k_scale`."""
    attention, _, scale = name.rpartition(".")
    return f"{attention}.{scale[0]}_proj.{scale}"


def _refuse_unloadable(folder: Path) -> None:
    broken = check_loadable(folder)
    if broken:
        more = f" ({len(broken) - 1} more rules are broken)" if len(broken) > 1 else ""
        raise RunError(
            f"{RUNTIME} would not load what was written: {broken[0]}{more}", "This is a fault of the target."
        )
