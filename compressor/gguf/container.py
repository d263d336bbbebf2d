"""Reads the GGUF container: its metadata at once, its tensors one at a time.

The header is parsed here rather than by `gguf.GGUFReader`, which makes several Python objects for every token of
the vocabulary (seconds and hundreds of megabytes). Dequantization is the `gguf` package's own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compressor.errors import InputError, MissingExtra
from compressor.files import refuse_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
READ_BYTES = 4 << 20  # of quantized data in memory at a time
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file. `shape` is in the order of torch, slowest dimension first."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose metadata is known and whose tensors are read by name."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, StoredTensor] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header.

        Raises:
            InputError: not a GGUF file, a version or tensor type that cannot be read, or the file is truncated.
        """
        with path.open("rb") as file:
            header = _Header(file, path)
            if file.read(4) != MAGIC:
                refuse_pointer(path)
                raise InputError(f"{path} is not a GGUF file.")
            version, tensor_count, key_count = header.unpack("IQQ")
            if version not in VERSIONS:
                raise InputError(
                    f"{path} is GGUF version {version & 0xFFFF or 'big-endian'}; versions 2 and 3 can be read."
                )
            metadata = dict(header.entry() for _ in range(key_count))
            listed = [header.tensor() for _ in range(tensor_count)]
            alignment = metadata.get("general.alignment") or DEFAULT_ALIGNMENT
            if not isinstance(alignment, int):
                raise InputError(f"{path} is damaged: its general.alignment is {alignment!r}.")
            start = math.ceil(file.tell() / alignment) * alignment
        tensors = {entry[0]: _stored(path, start, *entry) for entry in listed}
        return cls(path, metadata, tensors)

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, float32 in its shape; the file's copy is not kept in memory."""
        from gguf import GGMLQuantizationType, dequantize

        stored = self.tensors[name]
        kind = GGMLQuantizationType[stored.kind]
        values = np.empty((stored.rows, stored.shape[-1]), dtype=np.float32)
        for rows, raw in self.rows(name):
            values[rows] = dequantize(raw, kind)
        return values.reshape(stored.shape)

    def rows(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The bytes of a tensor, uint8 [rows, bytes of a row], as many rows at a time as are worth one read."""
        stored = self.tensors[name]
        row_bytes = stored.nbytes // stored.rows
        step = max(1, READ_BYTES // row_bytes)
        with self.path.open("rb") as file:
            file.seek(stored.offset)
            for start in range(0, stored.rows, step):
                count = min(step, stored.rows - start)
                raw = np.fromfile(file, dtype=np.uint8, count=count * row_bytes)
                yield slice(start, start + count), raw.reshape(count, row_bytes)


@dataclass
class _Header:
    """The part of the file before the tensor data, read front to back."""

    file: BinaryIO
    path: Path

    def __post_init__(self) -> None:
        self.size = self.path.stat().st_size

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self._bytes(struct.calcsize("<" + layout)))

    def entry(self) -> tuple[str, Any]:
        key = self._string()
        (kind,) = self.unpack("I")
        return key, self._value(kind)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape in torch's order, type number, and offset in the data section."""
        name = self._string()
        (rank,) = self.unpack("I")
        dimensions = self.unpack(f"{rank}Q")
        kind, offset = self.unpack("IQ")
        return name, dimensions[::-1], kind, offset

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self.unpack("IQ")
            if element == ARRAY:
                raise InputError(f"{self.path} is damaged: its metadata has a list of lists, which no model has.")
            if element in SCALARS:
                return list(self.unpack(f"{self._plausible(count)}{SCALARS[element]}"))
            return [self._value(element) for _ in range(self._plausible(count))]
        if kind not in SCALARS:
            raise InputError(f"{self.path} is damaged: its metadata has a value of unknown type {kind}.")
        return self.unpack(SCALARS[kind])[0]

    def _string(self) -> str:
        (length,) = self.unpack("Q")
        return self._bytes(length).decode("utf-8", errors="replace")

    def _bytes(self, count: int) -> bytes:
        data = self.file.read(self._plausible(count))
        if len(data) < count:
            raise self._truncated()
        return data

    def _plausible(self, count: int) -> int:
        if count > self.size:
            raise self._truncated()
        return count

    def _truncated(self) -> InputError:
        return InputError(f"{self.path} is truncated or damaged: its header does not end.", "Download it again.")


def _stored(path: Path, start: int, name: str, shape: tuple[int, ...], number: int, offset: int) -> StoredTensor:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise MissingExtra("gguf", "gguf", f"Reading {path}") from error
    if number not in {kind.value for kind in GGMLQuantizationType}:
        raise InputError(f"{path}: tensor {name} has the unknown type {number}.", "A newer gguf package may know it.")
    kind = GGMLQuantizationType(number)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not shape or 0 in shape or shape[-1] % block:
        raise InputError(f"{path} is damaged: tensor {name} has the shape {list(shape)}, in blocks of {block}.")
    nbytes = math.prod(shape) // block * block_bytes
    if start + offset + nbytes > path.stat().st_size:
        raise InputError(f"{path} is truncated: tensor {name} lies beyond its end.", "Download it again.")
    return StoredTensor(name, kind.name, shape, start + offset, nbytes)
