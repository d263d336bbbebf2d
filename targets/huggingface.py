"""The last step's folder itself, for transformers and whatever else opens compressed-tensors folders."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor import layout
from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.decoder import attention_implementation
from compressor.families import EMBEDDINGS
from compressor.measure.torch_session import TorchSession, check_memory
from compressor.pass_ import Progress
from compressor.quantized import Scheme
from compressor.requirements import unfit
from compressor.shards import INDEX
from compressor.target import Artifact, Runtime, Session, Target, Tolerance
from compressor.writer import CheckpointWriter, copy_companions
from targets.packing import compressed_folder, nf4_folder
from targets.packing.stored import in_memory
from targets.refusals import refusals
from targets.structure import CHECKPOINT_RULES, broken_checkpoint_rules
from targets.tolerances import BY_DTYPE, ROUNDED, ROUNDED_TO_FOUR
from targets.vllm import VllmFp8, VllmInt4, VllmInt8, vllm_runtime


@dataclass(frozen=True)
class HuggingFace(Target):
    """Copies the checkpoint byte for byte, where nothing in it was left to decide; any scheme of a step, or none."""

    name = "hf"
    summary = "Hugging Face folder (compressed-tensors if quantized) for transformers and TGI"
    runtime = "transformers >= 5.15 with compressed-tensors, or text-generation-inference >= 3.0"
    preset = ("gptq:bits=4",)
    holds_floats = True
    holds_cache_scales = True
    holds_quantized_embedding = True
    reader = f"{compressed_folder.READER}, or {nf4_folder.READER} for NF4"
    rules = CHECKPOINT_RULES

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        if _has(schemes, "nf4") and find_spec("bitsandbytes") is None:
            return ["NF4 is read back by bitsandbytes, which is missing; pip install 'llmc-compiler[bitsandbytes]'."]
        packed = [name for name, scheme in schemes.items() if scheme.kind != "nf4"]
        if packed and architecture.transposed:
            # bitsandbytes does: transformers puts its linears in the place of either.
            return [
                f"transformers keeps {packed[0]} as Conv1D, for which compressed-tensors has no form; "
                "nf4 works here, the float model, or the targets vllm-int4, gptq and onnx-int4."
            ]
        return []

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        if checkpoint.notes:
            return _written_anew(checkpoint, out, progress)
        shards = {info.shard for info in checkpoint.tensors.values()}
        names = ["config.json", *([INDEX] if (checkpoint.root / INDEX).is_file() else []), *sorted(shards)]
        for done, name in enumerate(names):
            progress("copying", done, len(names))
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.root / name, out / name)
        copy_companions(checkpoint.root, out)
        progress("copying", len(names), len(names))
        return []

    def reader_of(self, schemes: Mapping[str, Scheme]) -> str:
        return nf4_folder.READER if _has(schemes, "nf4") else compressed_folder.READER

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        # A folder from elsewhere may hold what transformers ignores: a tied head's second copy, rotary tables.
        checkpoint = Checkpoint.open(artifact.root)
        read = nf4_folder.read_folder if _has(checkpoint.schemes, "nf4") else compressed_folder.read_folder
        return (pair for pair in in_memory(read(artifact.root), artifact.root) if pair[0] in checkpoint.parameters)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        return broken_checkpoint_rules(artifact.root)

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        checkpoint = Checkpoint.open(artifact.root)
        bits = {scheme.activations.bits for scheme in checkpoint.schemes.values() if scheme.activations}
        if 4 in bits:
            return ROUNDED_TO_FOUR
        if bits or checkpoint.kv_cache:
            return ROUNDED
        return BY_DTYPE[torch.bfloat16 if _has(checkpoint.schemes, "nvfp4") else checkpoint.dtype]

    def why_not_run(self) -> str | None:
        return unfit("transformers") or unfit("compressed-tensors")

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open with transformers, which decompresses the weights through compressed-tensors or bitsandbytes."""
        from transformers import AutoModelForCausalLM

        checkpoint = Checkpoint.open(artifact.root)
        check_memory(checkpoint)
        with redirect_stderr(StringIO()):  # its progress bars would run into ours
            attention = attention_implementation(checkpoint.architecture)
            session = TorchSession(
                AutoModelForCausalLM.from_pretrained(
                    artifact.root, local_files_only=True, attn_implementation=attention
                )
            )
            session.prefill(np.zeros((1, 1), dtype=np.int64))  # the first forward pass is what decompresses
        return session

    def runtimes(self, artifact: Artifact) -> tuple[Runtime, ...]:
        """transformers, and vLLM where it has kernels for the folder."""
        own = super().runtimes(artifact)
        checkpoint = Checkpoint.open(artifact.root)
        if not _vllm_takes(checkpoint):
            return own
        return (*own, vllm_runtime(artifact, {scheme.kind for scheme in checkpoint.schemes.values()}))

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        quantization = config.get("quantization_config") or {}
        groups = (quantization.get("config_groups") or {}).values()
        formats = {quantization.get("format"), *(group.get("format") for group in groups)}
        if quantization.get("quant_method") == nf4_folder.READER or compressed_folder.NVFP4 in formats:
            # text-generation-inference makes NF4 of float folders only, and has no kernels for NVFP4.
            return shlex.join(["vllm", "serve", path, "--port", "8000"])
        if layout.read_schemes(config, EMBEDDINGS):
            return shlex.join(["transformers", "serve", path, "--port", "8080"])  # the servers hold float tables only
        return shlex.join(["text-generation-launcher", "--model-id", path, "--port", "8080"])


@dataclass(frozen=True)
class HuggingFaceNf4(HuggingFace):
    """The same folder with NF4 linears, which bitsandbytes computes with."""

    name = "hf-nf4"
    summary = "NF4 weights for transformers with bitsandbytes"
    runtime = "transformers >= 5.15 with bitsandbytes >= 0.50"
    preset = ("nf4",)
    holds_cache_scales = False
    holds_quantized_embedding = False
    reader = nf4_folder.READER

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return refusals(
            self.runtime, _nf4_only, architecture, schemes, self.preset[0], fuses=False
        ) or super().problems(architecture, schemes)


def _nf4_only(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
    return [] if scheme.type == "nf4" else [f"{scheme.kind} is not NF4; the pass nf4 works, or the target hf"]


def _written_anew(checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
    """Write what the files were read as, so that no reader has to decide it again."""
    writer, names = CheckpointWriter(out, checkpoint.architecture, checkpoint.dtype), checkpoint.block_names
    for done, block in enumerate(checkpoint.blocks()):
        progress("writing", done, len(names))
        writer.add(block.weights)
    writer.finish(checkpoint.config, None)
    copy_companions(checkpoint.root, out)
    progress("writing", len(names), len(names))
    return ["written anew, since the model's own files left something to decide"]


def _has(schemes: Mapping[str, Scheme], kind: str) -> bool:
    return any(scheme.kind == kind for scheme in schemes.values())


def _vllm_takes(checkpoint: Checkpoint) -> bool:
    """Whether vLLM has kernels for a folder: a float one, or one that a target made for it takes."""
    schemes = checkpoint.schemes
    made_for_it = (VllmInt4(), VllmInt8(), VllmFp8())
    return not schemes or any(not target.problems(checkpoint.architecture, schemes) for target in made_for_it)
