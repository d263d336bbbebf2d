"""A model folder as its files have it: config.json, and tensors under the names that its family gives them.

What the files leave open is decided as transformers decides it, and said in a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.architecture import Architecture, read_config, resolve
from compressor.families import FAMILIES, HEAD, full_name
from compressor.shards import TensorInfo, check_equal, equal_values, read_headers

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
    wanted = [info for info in headers.tensors.values() if not info.name.endswith(family.ignored)]
    tensors = _by_full_name(root, wanted, family.optional_prefix)
    found = Stored(config, architecture, tensors, (*headers.notes, *_renamed(tensors), *_narrowed(tensors)))
    return _with_head(root, found) if architecture.tied_embeddings else found


def _by_full_name(root: Path, infos: Iterable[TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    """Tensors under the names that their family gives them; two that get the same one have to be equal."""
    named: dict[str, TensorInfo] = {}
    for info in infos:
        before = named.setdefault(full_name(info.name, prefix), info)
        if before is not info:
            check_equal(root, before, info)
    return named


def _renamed(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """A note on names that are not those of the family, with the first of them."""
    renamed = [(info.name, name) for name, info in tensors.items() if info.name != name]
    if not renamed:
        return []
    stored, name = renamed[0]
    return [f"{len(renamed)} tensors are stored under other names than the family's: {stored} is read as {name}"]


def _narrowed(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """A note on tensors in float64, with the first of them."""
    wide = [name for name, info in tensors.items() if info.wide]
    return [f"{len(wide)} tensors are stored in float64 and read as float32: {wide[0]} first"] if wide else []


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
