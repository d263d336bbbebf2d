"""Rules of structure for the one file: what llama.cpp, and whoever reads the file back, would stumble over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.architecture import resolve
from compressor.errors import InputError
from compressor.gguf.blocks import BITS, GROUP_SIZES, group_sizes
from compressor.gguf.config import build_config
from compressor.gguf.container import DEFAULT_ALIGNMENT, GgufFile
from compressor.gguf.weights import FLOATS, check_tensors

RULES = "metadata, tokens and tensors of the file fit together, and tensors lie in it without gaps"


def broken_rules(path: Path) -> list[str]:
    """Every rule that the file breaks, as a sentence each; only the first where its header cannot be understood."""
    try:
        file = GgufFile.open(path)
        config = build_config(file)
        check_tensors(file, resolve(config))
        group_sizes(file)
    except InputError as error:
        return [str(error)]
    return [*_metadata_rules(file, config), *_kind_rules(file), *_place_rules(file)]


def _metadata_rules(file: GgufFile, config: dict[str, Any]) -> Iterator[str]:
    if GROUP_SIZES not in file.metadata:
        yield f"The metadata has no {GROUP_SIZES}."
    for key in ("tokens", "token_type"):
        found = len(file.metadata.get(f"tokenizer.ggml.{key}") or ())
        if found != config["vocab_size"]:
            yield f"tokenizer.ggml.{key} has {found} entries, and the embedding {config['vocab_size']} rows."


def _kind_rules(file: GgufFile) -> Iterator[str]:
    for tensor in file.tensors.values():
        allowed = ("F32",) if len(tensor.shape) == 1 else (*FLOATS, *BITS)
        if tensor.kind not in allowed:
            yield f"{tensor.name} is stored as {tensor.kind}, not as {' or '.join(allowed)}."


def _place_rules(file: GgufFile) -> Iterator[str]:
    alignment = file.metadata.get("general.alignment") or DEFAULT_ALIGNMENT
    tensors = sorted(file.tensors.values(), key=lambda tensor: tensor.offset)
    for before, tensor in itertools.pairwise(tensors):
        if tensor.offset != math.ceil((before.offset + before.nbytes) / alignment) * alignment:
            yield f"{tensor.name} does not begin where {before.name} ends."
    end = tensors[-1].offset + tensors[-1].nbytes
    if not end <= file.path.stat().st_size < end + alignment:
        yield f"The file does not end where its last tensor {tensors[-1].name} does."
