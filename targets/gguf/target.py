"""int4 and int8 weights for llama.cpp, in the blocks of Q4_0 and Q8_0.

A block holds 32 inputs and a scale. Larger groups, and one scale a channel, are blocks that repeat it, so that every
symmetric scheme in whole blocks is held bit for bit.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.encoding import Encode
from compressor.gguf.architectures import gain_shift
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import Scheme
from compressor.target import Artifact, Rounding, Session, Target, Tolerance, Variant
from compressor.writer import copy_legal
from targets.casting import DTYPE_HELP, Caster, ServedDtype, cast, dtype_name, float_problems, scale_problems
from targets.engines import LLAMA_CPP
from targets.gguf.metadata import LONGROPE, RUNTIME, architecture_problems, context_length, rope_problems, served_length
from targets.gguf.reader import READER, read_file
from targets.gguf.rules import RULES, broken_rules
from targets.gguf.tokenizer import tokenizer_problems
from targets.gguf.writer import block_kind, is_float32, write_file
from targets.packing.gguf_blocks import BLOCK
from targets.refusals import refusals
from targets.tolerances import ROUNDED

FILE = "model.gguf"
PLAIN_CACHE, SMALL_CACHE = "f16", "q8_0"


@dataclass(frozen=True)
class GgufTarget(Target):
    """Streams the checkpoint into one file; subclasses say which codes it may hold."""

    runtime = f"{RUNTIME} (llama-server)"
    engine = LLAMA_CPP
    reader = READER
    rules = RULES
    holds_quantized_embedding = True
    bits: ClassVar[int]  # of at least one layer
    kinds: ClassVar[tuple[str, ...]]  # of codes that a layer may have

    dtype: ServedDtype = option("auto", DTYPE_HELP + "; norms and biases are always float32")
    kv_cache: Literal["f16", "q8_0"] = option(
        PLAIN_CACHE, "what keys and values are kept in when it is run; q8_0 is half as large. The file is the same"
    )

    @property
    def variants(self) -> tuple[Variant, ...]:
        plain = (Variant(f"{PLAIN_CACHE} cache", {"kv_cache": PLAIN_CACHE}),) if self.kv_cache == SMALL_CACHE else ()
        return (*plain, *super().variants)

    def why_not_made(self) -> str | None:
        if find_spec("gguf") is not None:
            return None
        return "GGUF files are written by the package gguf, which is missing; pip install 'llmc-compiler[gguf]'."

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        found = refusals(RUNTIME, self._layer_reasons, architecture, schemes, fuses=False)
        if schemes and not found and self.bits not in {scheme.bits for scheme in schemes.values()}:
            found.append(f"No layer is int{self.bits}; the target gguf-q8_0 takes these.")
        return [*found, *architecture_problems(architecture), *self._cache_type_problems(architecture)]

    def embedding_problems(self, architecture: Architecture, scheme: Scheme) -> list[str]:
        shape = (architecture.vocab_size, architecture.hidden_size)
        return [f"{architecture.embedding}: {reason}." for reason in self._layer_reasons(scheme, *shape)]

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        yield from rope_problems(checkpoint.config)
        shape = checkpoint.architecture
        narrow = [name for name in floats if not is_float32(shape, name, len(checkpoint.parameters[name]))]
        yield from float_problems(self.dtype, checkpoint, narrow)
        yield from scale_problems(checkpoint, torch.float16, "The target hf keeps them.")

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        caster = Caster(self.dtype, checkpoint)
        notes = write_file(out / FILE, checkpoint, caster, f"MOSTLY_Q{self.bits}_0", progress)
        copy_legal(checkpoint, out)
        return [*caster.notes, *_widened(checkpoint), *_shortened(checkpoint), *notes]

    def tokenizer_problems(self, root: Path, vocab_size: int) -> list[str]:
        return tokenizer_problems(root, vocab_size)

    def encoder(self, artifact: Artifact) -> Encode | None:
        return None  # llama.cpp's own is not asked; what it is told is read by `check_tokenizer`

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        return read_file(artifact.root / FILE)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return broken_rules(artifact.root / FILE)

    def expected(self, name: str, weight: Weight, architecture: Architecture) -> Weight:
        if not isinstance(weight, torch.Tensor) or not is_float32(architecture, name, weight.dim()):
            return cast(self.dtype, weight)
        return weight.float() + gain_shift(architecture, name)

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        return ROUNDED  # its kernels multiply blocks of eight bits with blocks of eight bits

    def rounding(self, artifact: Artifact, **options: Any) -> Rounding:
        return Rounding(block=BLOCK)

    def why_not_run(self) -> str | None:
        return LLAMA_CPP.why_missing()

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Run it in llama.cpp, in the environment of that.

        Args:
            options: `kv_cache`, in the place of the target's own.
        """
        from compressor.gguf.config import build_config
        from compressor.gguf.container import GgufFile
        from targets.engines.llama_cpp_session import LlamaCppSession

        file = artifact.root / FILE
        length = served_length(build_config(GgufFile.open(file)))
        return LlamaCppSession(file, length, options.get("kv_cache", self.kv_cache))

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        length = str(served_length(config))
        command = ["llama-server", "-m", f"{path}/{FILE}", "--port", "8080", "-c", length]
        if self.kv_cache == SMALL_CACHE:  # values are quantized in fused attention only
            command += ["-fa", "on", "--cache-type-k", SMALL_CACHE, "--cache-type-v", SMALL_CACHE]
        return shlex.join(command)

    def _cache_type_problems(self, architecture: Architecture) -> list[str]:
        width = architecture.head_dim
        if self.kv_cache == PLAIN_CACHE or width % BLOCK == 0:
            return []
        return [
            f"{RUNTIME} keeps a key-value cache of {SMALL_CACHE} in blocks of {BLOCK}, of which {width}, the width of "
            f"a head, is no multiple; {self.name}:kv_cache={PLAIN_CACHE} works."
        ]

    def _layer_reasons(self, scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
        works = f"gptq:bits={self.bits},group_size={BLOCK}"
        if scheme.kind not in self.kinds:
            yield f"{scheme.kind} is not what this target holds; {works} or the target hf works"
            return
        if scheme.activations is not None:
            yield f"{scheme.activations} are not what {RUNTIME} computes with; activations=none works, or the target hf"
        if not scheme.symmetric:
            yield f"{block_kind(scheme)} has no zero points; symmetric=true works"
        if in_features % BLOCK:
            yield f"the input width {in_features} is no multiple of the {BLOCK} of a block; skip these layers"
        elif scheme.group_size is not None and scheme.group_size % BLOCK:
            fitting = " or ".join(str(size) for size in (128, 64, 32) if in_features % size == 0)
            yield f"group {scheme.group_size} is no multiple of the {BLOCK} of a block; group_size {fitting} works"


@dataclass(frozen=True)
class GgufQ4(GgufTarget):
    """int4 weights, some layers int8."""

    name = "gguf-q4_0"
    summary = "int4 weights for llama.cpp (GGUF, Q4_0; int8 layers as Q8_0)"
    preset = (f"gptq:bits=4,group_size={BLOCK}",)
    bits = 4
    kinds = ("int4", "int8")


@dataclass(frozen=True)
class GgufQ8(GgufTarget):
    """int8 weights."""

    name = "gguf-q8_0"
    summary = "int8 weights for llama.cpp (GGUF, Q8_0)"
    preset = (f"gptq:bits=8,group_size={BLOCK}",)
    bits = 8
    kinds = ("int8",)


def _widened(checkpoint: Checkpoint) -> list[str]:
    shape = checkpoint.architecture
    wide = [name for name, size in checkpoint.parameters.items() if is_float32(shape, name, len(size))]
    stored = {checkpoint.tensors[name].dtype for name in wide} - {torch.float32}
    names = " and ".join(sorted(dtype_name(dtype) for dtype in stored))
    what = "norms, biases and positions" if shape.modules.positions else "norms and biases"
    return [f"{what} widened {names} -> float32, which {RUNTIME} wants"] if stored else []


def _shortened(checkpoint: Checkpoint) -> Iterator[str]:
    shape = checkpoint.architecture
    length = context_length(shape)
    if length != shape.max_positions:
        yield (
            f"context of {length} instead of {shape.max_positions} tokens: {RUNTIME} does not apply the sliding window"
        )
    if LONGROPE in shape.rope_types:
        yield (
            f"the run script serves {served_length(checkpoint.config)} tokens: where more are asked for, {RUNTIME} "
            "takes the long rope factors for short texts too, and the model does not"
        )
