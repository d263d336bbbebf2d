"""Finds the weights of an ONNX file in an engine that was built of it: the very bytes, where the builder kept them.

An engine has no list of its weights that could be read without a GPU. But the builder stores a weight as a run of
bytes, as the ONNX file has it or transposed, or its rows between those of others that read the same input. Equal bytes
are the weight.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from targets.onnx.file import load_graph, read_bytes
from targets.tensorrt_rtx.description import Place

ALIGNMENT = 4  # of weights in an engine, in bytes
CHUNK = 16 << 20  # bytes looked through at once
PREFIX = 8  # bytes by which a weight is looked for
START = 64  # bytes that are compared before all of them are
LOW = np.uint64(0xFFFF)
WIDEST = 64  # how many times as wide as a matrix those may be that it is put beside


@dataclass(frozen=True)
class _Wanted:
    """A tensor in one of its two orders: a digest of its bytes, and what it is recognized by."""

    name: str
    transposed: bool
    length: int
    digest: bytes
    prefix: int
    start: bytes
    rows: int
    second_row: bytes


def stored_tensors(root: Path) -> dict[str, TensorProto]:
    """The tensors of the graph in `root` whose data is in another file."""
    graph = load_graph(root).graph
    return {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}


def find(root: Path, engine: Path, tensors: Mapping[str, TensorProto]) -> dict[str, Place]:
    """The place of every tensor that lies in the engine in one of the two orders."""
    wanted = [one for tensor in tensors.values() for one in _orders(root, tensor) if one.length >= PREFIX]
    by_prefix: dict[int, list[_Wanted]] = {}
    for one in wanted:
        by_prefix.setdefault(one.prefix, []).append(one)
    found: dict[str, Place] = {}
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for offset, prefix in _candidates(content, np.array(sorted(by_prefix), np.uint64)):
            for one in by_prefix[prefix]:
                place = None if one.name in found else _place(content, offset, one)
                if place is not None:
                    found[one.name] = place
    return found


def lies_at(root: Path, engine: Path, tensor: TensorProto, place: Place) -> bool:
    """Whether the engine has the tensor's bytes at that place."""
    with engine.open("rb") as file:
        file.seek(place.offset)
        return _rows(file.read(place.span), place) == _bytes(root, tensor, place.transposed)


def _place(content: mmap.mmap, offset: int, wanted: _Wanted) -> Place | None:
    """The place of a tensor whose first bytes stand at an offset, if the others follow in one run or row by row."""
    if content[offset : offset + len(wanted.start)] != wanted.start:
        return None
    whole = Place(offset, wanted.length, wanted.transposed)
    if _digest(content, whole) == wanted.digest:
        return whole
    width = len(wanted.second_row)
    second = content.find(wanted.second_row, offset + width, offset + WIDEST * width) if width else -1
    if second < 0:
        return None
    apart = Place(offset, wanted.length, wanted.transposed, second - offset, wanted.rows)
    return apart if _digest(content, apart) == wanted.digest else None


def _candidates(content: mmap.mmap, prefixes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Offsets at which one of the prefixes stands, and which."""
    starts = np.zeros(int(LOW) + 1, bool)  # by their lowest bits, which tell most offsets apart from all of them
    starts[prefixes & LOW] = True
    words = len(content) // ALIGNMENT
    per_chunk = CHUNK // ALIGNMENT
    for start in range(0, words - 1, per_chunk):
        count = min(per_chunk + 1, words - start)  # a prefix is two words: chunks overlap by one
        part = np.frombuffer(content, np.uint32, count, start * ALIGNMENT).astype(np.uint64)
        likely = np.flatnonzero(starts[part[:-1] & LOW])
        values = part[likely] | part[likely + 1] << np.uint64(32)
        for index in np.flatnonzero(np.isin(values, prefixes)):
            yield (start + int(likely[index])) * ALIGNMENT, int(values[index])


def _orders(root: Path, tensor: TensorProto) -> Iterator[_Wanted]:
    for transposed in (False, True) if len(tensor.dims) == 2 else (False,):
        content = _bytes(root, tensor, transposed)
        rows = tensor.dims[int(transposed)] if len(tensor.dims) == 2 else 1
        width = len(content) // rows
        prefix, digest = int.from_bytes(content[:PREFIX], "little"), hashlib.sha256(content).digest()
        start, second_row = content[: min(width, START)], content[width : 2 * width]
        yield _Wanted(tensor.name, transposed, len(content), digest, prefix, start, rows, second_row)


def _bytes(root: Path, tensor: TensorProto, transposed: bool) -> bytes:
    stored = read_bytes(root, tensor)
    if not transposed:
        return stored.tobytes()
    if tensor.data_type != TensorProto.INT4:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return stored.view(dtype).reshape(tensor.dims).T.tobytes()
    nibbles = np.stack([stored & 15, stored >> 4], axis=-1).reshape(tensor.dims).T.reshape(-1, 2)
    return (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes()


def _digest(content: mmap.mmap, place: Place) -> bytes:
    return hashlib.sha256(_rows(content[place.offset : place.offset + place.span], place)).digest()


def _rows(span: bytes, place: Place) -> bytes:
    """The bytes of a tensor out of those from its first to its last."""
    if place.rows == 1 or len(span) < place.span:
        return span
    width = place.length // place.rows
    values = np.frombuffer(span, np.uint8)
    return np.lib.stride_tricks.as_strided(values, (place.rows, width), (place.stride, 1)).tobytes()
