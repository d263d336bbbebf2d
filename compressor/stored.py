"""A model folder as its files have it: config.json, and tensors under the names that its family gives them.

What the files leave open is decided as transformers decides it, and said in a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.architecture import Architecture, read_config, resolve
from compressor.families import FAMILIES, HEAD, full_name
from compressor.shards import TensorInfo, equal_values, read_headers

HEAD_WEIGHT = f"{HEAD}.weight"
UNTIED = (
    f"config.json ties {HEAD} to the embedding, and {HEAD_WEIGHT} holds other values: it is taken as a head of its "
    "own, as transformers takes it"
)


@dataclass(frozen=True)
class Stored:
    """`config` and `architecture` say whether the head is tied as the weights do; `tensors` holds no copy of one."""

    config: dict[str, Any]
    architecture: Architecture
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...]


def read_stored(root: Path) -> Stored:
    """Read config.json and the headers of a folder's weights.

    Raises:
        InputError: one of them cannot be read, or they contradict each other.
    """
    config = read_config(root)
    architecture = resolve(config)
    headers = read_headers(root)
    family = FAMILIES[architecture.model_type]
    named = {full_name(name, family.optional_prefix): info for name, info in headers.tensors.items()}
    tensors = {name: info for name, info in named.items() if not name.endswith(family.ignored)}
    found = Stored(config, architecture, tensors, tuple(headers.notes))
    return _with_head(root, found) if architecture.tied_embeddings else found


def _with_head(root: Path, found: Stored) -> Stored:
    """What `found` is when the weights have their say about a head that config.json ties to the embedding.

    As in `PreTrainedModel.tie_weights` of transformers 5: different values are not tied, and a head alone is both.
    """
    table, tensors = f"{found.architecture.embedding}.weight", dict(found.tensors)
    if HEAD_WEIGHT not in tensors:
        return found
    head = tensors.pop(HEAD_WEIGHT)
    if table not in tensors:
        return found if _is_quantized(found) else replace(found, tensors=tensors | {table: head})
    if not _is_quantized(found) and not equal_values(root, tensors[table], head):
        return _untied(found)
    return replace(found, tensors=tensors)


def _is_quantized(found: Stored) -> bool:
    """Whether the embedding or the head is, of which the integers are one table already."""
    tables = (found.architecture.embedding, HEAD)
    return any(name.startswith(f"{table}.") and name != f"{table}.weight" for name in found.tensors for table in tables)


def _untied(found: Stored) -> Stored:
    return replace(
        found,
        config=found.config | {"tie_word_embeddings": False},
        architecture=replace(found.architecture, tied_embeddings=False),
        notes=(*found.notes, UNTIED),
    )
