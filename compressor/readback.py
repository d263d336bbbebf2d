"""An artifact as a checkpoint again: its weights as its target's reader gives them, in memory.

What llmc's decoder computes from them is what the artifact means, whichever runtime it was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor.architecture import read_config, resolve
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import RunError
from compressor.families import CACHE_SCALES
from compressor.pass_ import Progress
from compressor.quantized import scheme_of
from compressor.target import Artifact, Target
from compressor.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ReadBack(Checkpoint):
    """Holds a model in the form that it is stored in; not a folder, so it has neither digest nor shards."""

    weights: Mapping[str, Weight] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, target: Target, artifact: Artifact, progress: Progress) -> ReadBack:
        """Read an artifact through its target's reader.

        Raises:
            RunError: the artifact lacks a parameter of its own architecture.
        """
        config = artifact_config(artifact.root)
        architecture, weights = resolve(config), {}
        total = len(architecture.tensor_shapes())
        for name, weight in target.read_back(artifact):
            weights[name] = weight
            progress("reading back", min(len(weights), total), total)
        missing = [name for name in architecture.tensor_shapes() if name not in weights]
        if missing:
            raise RunError(f"{artifact.root} has no {missing[0]}, so that nothing can be compared with it.")
        quantized = {name: weight for name, weight in weights.items() if not isinstance(weight, torch.Tensor)}
        schemes = {name.removesuffix(".weight"): scheme_of(weight) for name, weight in quantized.items()}
        kv_cache = any(name.endswith(CACHE_SCALES) for name in weights)
        return cls(artifact.root, config, architecture, {}, schemes, kv_cache, weights=weights)

    @property
    def dtype(self) -> torch.dtype:
        return next(weight.dtype for weight in self.weights.values() if isinstance(weight, torch.Tensor))

    def read(self, parameters: list[str]) -> dict[str, Weight]:
        return {name: self.weights[name] for name in parameters}


def artifact_config(root: Path) -> dict[str, Any]:
    """The model's config.json, which a GGUF file has inside.

    Raises:
        InputError: the artifact has none.
    """
    files = list(root.glob("*.gguf"))
    if (root / "config.json").is_file() or not files:
        return read_config(root)
    from compressor.gguf.config import build_config
    from compressor.gguf.container import GgufFile

    return build_config(GgufFile.open(files[0]))


def artifact_tokenizer(root: Path) -> Any:
    """An artifact's own tokenizer, which a GGUF file has inside.

    Raises:
        InputError: it has none, or it cannot be opened.
    """
    files = list(root.glob("*.gguf"))
    if not files:
        return load_tokenizer(root)
    from compressor.gguf.container import GgufFile
    from compressor.gguf.tokenizer import build_tokenizer

    return build_tokenizer(GgufFile.open(files[0]))
