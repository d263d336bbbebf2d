"""The last step's folder itself, for transformers and whatever else opens compressed-tensors folders."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.measure.torch_session import TorchSession, check_memory
from compressor.pass_ import Progress
from compressor.quantized import Scheme
from compressor.shards import INDEX
from compressor.target import Artifact, Session, Target
from compressor.writer import copy_companions
from targets.packing import compressed_folder


@dataclass(frozen=True)
class HuggingFace(Target):
    """Copies the checkpoint byte for byte; any scheme that a step can have, or none."""

    name = "hf"
    summary = "Hugging Face folder (compressed-tensors) for transformers and TGI"
    runtime = "transformers >= 5.15 with compressed-tensors, or text-generation-inference >= 3.0"
    preset = ("gptq:bits=4",)
    holds_cache_scales = True
    reader = compressed_folder.READER

    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        return []

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        shards = {info.shard for info in checkpoint.tensors.values()}
        names = ["config.json", *([INDEX] if (checkpoint.root / INDEX).is_file() else []), *sorted(shards)]
        for done, name in enumerate(names):
            progress("copying", done, len(names))
            shutil.copyfile(checkpoint.root / name, out / name)
        copy_companions(checkpoint.root, out)
        progress("copying", len(names), len(names))
        return []

    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        # A folder from elsewhere may hold what transformers ignores: a tied head's second copy, rotary tables.
        parameters = Checkpoint.open(artifact.root).parameters
        return (pair for pair in compressed_folder.read_folder(artifact.root) if pair[0] in parameters)

    def why_not_run(self) -> str | None:
        return None

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open with transformers, which decompresses the weights through compressed-tensors."""
        from transformers import AutoModelForCausalLM

        check_memory(Checkpoint.open(artifact.root))
        with redirect_stderr(StringIO()):  # its progress bars would run into ours
            session = TorchSession(AutoModelForCausalLM.from_pretrained(artifact.root, local_files_only=True))
            session.prefill(np.zeros((1, 1), dtype=np.int64))  # the first forward pass is what decompresses
        return session

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        return shlex.join(["text-generation-launcher", "--model-id", path, "--port", "8080"])
