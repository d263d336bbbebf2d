"""Finds the weights of an ONNX file in an engine that was built of it: the very bytes, where the builder kept them.

An engine has no list of its weights that could be read without a GPU. But the builder stores a weight as a run of
bytes, as the ONNX file has it or transposed, so that equal bytes of its length are the weight.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from targets.tensorrt_rtx.description import Place

ALIGNMENT = 4  # of weights in an engine, in bytes
CHUNK = 16 << 20  # bytes looked through at once
PREFIX = 8  # bytes by which a weight is looked for


@dataclass(frozen=True)
class _Wanted:
    """A tensor in one of its two orders."""

    name: str
    transposed: bool
    length: int
    prefix: int
    digest: bytes


def stored_tensors(root: Path) -> dict[str, TensorProto]:
    """The tensors of the graph in `root` whose data is in another file."""
    graph = onnx.load(root / "model.onnx", load_external_data=False).graph
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
                if one.name not in found and _digest(content, offset, one.length) == one.digest:
                    found[one.name] = Place(offset, one.length, one.transposed)
    return found


def lies_at(root: Path, engine: Path, tensor: TensorProto, place: Place) -> bool:
    """Whether the engine has the tensor's bytes at that place."""
    content = _bytes(root, tensor, place.transposed)
    with engine.open("rb") as file:
        file.seek(place.offset)
        return len(content) == place.length and file.read(place.length) == content


def _candidates(content: mmap.mmap, prefixes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Offsets at which one of the prefixes stands, and which."""
    words = len(content) // ALIGNMENT
    per_chunk = CHUNK // ALIGNMENT
    for start in range(0, words - 1, per_chunk):
        count = min(per_chunk + 1, words - start)  # a prefix is two words: chunks overlap by one
        part = np.frombuffer(content, np.uint32, count, start * ALIGNMENT).astype(np.uint64)
        values = part[:-1] | part[1:] << np.uint64(32)
        for index in np.flatnonzero(np.isin(values, prefixes)):
            yield (start + int(index)) * ALIGNMENT, int(values[index])


def _orders(root: Path, tensor: TensorProto) -> Iterator[_Wanted]:
    for transposed in (False, True) if len(tensor.dims) == 2 else (False,):
        content = _bytes(root, tensor, transposed)
        prefix = int.from_bytes(content[:PREFIX], "little")
        yield _Wanted(tensor.name, transposed, len(content), prefix, hashlib.sha256(content).digest())


def _bytes(root: Path, tensor: TensorProto, transposed: bool) -> bytes:
    place = ExternalDataInfo(tensor)
    stored = np.fromfile(root / place.location, np.uint8, place.length or 0, offset=place.offset or 0)
    if not transposed:
        return stored.tobytes()
    if tensor.data_type != TensorProto.INT4:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return stored.view(dtype).reshape(tensor.dims).T.tobytes()
    nibbles = np.stack([stored & 15, stored >> 4], axis=-1).reshape(tensor.dims).T.reshape(-1, 2)
    return (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes()


def _digest(content: mmap.mmap, offset: int, length: int) -> bytes:
    return hashlib.sha256(content[offset : offset + length]).digest()
