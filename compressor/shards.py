"""Tensors in safetensors shards: known from headers, read by name."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from compressor.errors import InputError
from compressor.files import refuse_pointer
from compressor.inside import inside
from compressor.json_file import read_object


@dataclass(frozen=True)
class ShardNames:
    """What the files that hold a folder's tensors are called."""

    stem: str

    @property
    def single(self) -> str:
        """The only one."""
        return f"{self.stem}.safetensors"

    @property
    def index(self) -> str:
        """What says which of several holds a tensor."""
        return f"{self.single}.index.json"

    def numbered(self, number: int, count: int) -> str:
        """One of several, counted from 1."""
        return f"{self.stem}-{number:05}-of-{count:05}.safetensors"

    def are_in(self, root: Path) -> bool:
        return (root / self.index).is_file() or (root / self.single).is_file()


COMMON = ShardNames("model")
OWN = ShardNames("llmc")  # of a folder that other loaders would misread, see layout/extensions.py
INDEX, SINGLE_SHARD = COMMON.index, COMMON.single
SAFETENSORS_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "BOOL": torch.bool,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}

WIDE = "F64"  # nothing computes in it; values are read as float32

ELEMENTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, as the header of its shard says.

    Attributes:
        dtype: what it is read as.
        wide: whether it is stored in float64, and read as float32.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: str
    wide: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its values as they are read."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def has_shards(root: Path) -> bool:
    """Whether a folder holds tensors in safetensors."""
    return OWN.are_in(root) or COMMON.are_in(root)


@dataclass(frozen=True)
class Headers:
    """What a folder's shards hold by their headers, and what was decided about files that say it twice."""

    tensors: dict[str, TensorInfo]
    notes: list[str]


def read_headers(root: Path) -> Headers:
    """Every tensor of a folder's shards, by name. As in transformers, one whole file goes before an index.

    Raises:
        InputError: there are no shards, one is missing, truncated or outside of the folder, the index names a tensor
            that its shard lacks, or two shards hold different values of one tensor.
    """
    names = OWN if OWN.are_in(root) else COMMON
    if (root / names.single).is_file():
        tensors = {info.name: info for info in read_header(root, names.single)}
        return Headers(tensors, _left_aside(root, names))
    if (root / names.index).is_file():
        return _read_indexed(root, root / names.index)
    pickles = sorted(path.name for path in root.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InputError(
            f"{root} holds pickle weights ({pickles[0]}), which can run code when opened.",
            "Convert them to safetensors, or pass --allow-pickle if you trust their source.",
        )
    raise InputError(f"{root} has no {SINGLE_SHARD} and no {INDEX}.")


def _left_aside(root: Path, names: ShardNames) -> list[str]:
    """A note on an index and its shards that lie beside a whole file."""
    aside = sorted(path.name for path in [root / names.index, *root.glob(f"{names.stem}-*-of-*.safetensors")])
    found = [name for name in aside if (root / name).is_file()]
    if not found:
        return []
    return [f"the weights are those of {names.single}, as transformers takes them; left aside: {', '.join(found)}"]


def _read_indexed(root: Path, index_path: Path) -> Headers:
    try:
        weight_map = read_object(index_path)["weight_map"]
        shards = sorted(map(str, set(weight_map.values())))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index_path} is not a safetensors index.") from error
    for shard in shards:
        inside(root, shard, index_path)
    holders = defaultdict(list)
    for info in (info for shard in shards for info in read_header(root, shard)):
        holders[info.name].append(info)
    for name, shard in weight_map.items():
        if shard not in [info.shard for info in holders.get(name, ())]:
            raise InputError(f"{index_path} places tensor {name} in {shard}, which does not hold it.")
    notes = []
    for name, (first, *others) in holders.items():
        for other in others:
            check_equal(root, first, other)
            notes.append(f"{name} lies in {first.shard} and in {other.shard}, with the same values")
    return Headers({name: infos[-1] for name, infos in holders.items()}, notes)


def check_equal(root: Path, first: TensorInfo, second: TensorInfo) -> None:
    """See that two tensors of a folder that mean the same parameter have the same values.

    Raises:
        InputError: they have not.
    """
    if not equal_values(root, first, second):
        places = " and ".join(f"{info.name} of {info.shard}" for info in (first, second))
        raise InputError(
            f"{places} are one parameter with two different values.", "Delete the one that is out of date."
        )


def equal_values(root: Path, first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors of a folder hold the same numbers; both are read piece by piece."""
    if first.shape != second.shape:
        return False
    pieces = zip(_pieces(root, first), _pieces(root, second), strict=True)
    return all(torch.equal(one.float(), other.float()) for one, other in pieces)


def _pieces(root: Path, info: TensorInfo) -> Iterator[torch.Tensor]:
    flat = replace(info, shape=(torch.Size(info.shape).numel(),))
    return read_rows(root, flat, ELEMENTS_AT_ONCE)


def read_tensors(
    root: Path, infos: Mapping[str, TensorInfo], names: Iterable[str], factors: bool = False
) -> dict[str, torch.Tensor]:
    """The tensors of these names, copied out of their shards, where they may be called otherwise.

    Args:
        factors: they are those of low-rank changes, of which one is zero as long as it was not trained.

    Raises:
        InputError: a tensor holds NaN or Inf, or one value only, or its shard cannot be read.
    """
    by_shard = defaultdict(list)
    for name in names:
        by_shard[infos[name].shard].append(name)
    read = {}
    for shard, wanted in by_shard.items():
        # Opened anew for every block and copied out: a mapping kept open would keep its pages resident.
        with _open_shard(root / shard) as file:
            for name in wanted:
                read[name] = file.get_tensor(infos[name].name).to(infos[name].dtype, copy=True)
                _check_finite(read[name], name, root / shard)
                if not factors:
                    _check_varied(read[name], name, root / shard)
    return read


def row_parts(rows: int, most: int) -> list[tuple[int, int]]:
    """First row and the one behind the last of as few parts as have at most so many rows, alike in size."""
    count = -(-rows // most)
    return [(rows * part // count, rows * (part + 1) // count) for part in range(count)]


def read_rows(root: Path, info: TensorInfo, most: int) -> Iterator[torch.Tensor]:
    """A tensor of one dimension or more in parts (see `row_parts`), each in memory of its own.

    Raises:
        InputError: a part holds NaN or Inf, or its shard ends before.
    """
    path = root / info.shard
    begin, _ = tensor_ranges(path)[info.name]
    with path.open("rb") as file:
        file.seek(begin)
        for start, stop in row_parts(info.shape[0], most):
            part = torch.empty((stop - start, *info.shape[1:]), dtype=torch.float64 if info.wide else info.dtype)
            if file.readinto(as_bytes(part)) != part.nbytes:
                raise InputError(f"{path} is truncated.", "Download it again.")
            part = part.to(info.dtype)
            _check_finite(part, info.name, path)
            yield part


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, as a file takes it."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def header(tensors: Iterable[TensorInfo]) -> bytes:
    """What a safetensors file begins with, when these tensors follow in this order without gaps.

    Format: github.com/huggingface/safetensors, README. Eight bytes of length, little-endian, and JSON padded to eight.
    """
    spelled = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        start, end = end, end + one.nbytes
        entries[one.name] = {"dtype": spelled[one.dtype], "shape": one.shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_ranges(path: Path) -> dict[str, tuple[int, int]]:
    """First byte of each tensor of a safetensors file, and the one behind its last, counted from the file's start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ranges = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (8 + length + start, 8 + length + end) for name, (start, end) in ranges.items()}


def read_header(root: Path, shard: str) -> list[TensorInfo]:
    """Every tensor of one safetensors file of a folder.

    Raises:
        InputError: it is missing, truncated, or holds a dtype that is not known here.
    """
    with _open_shard(root / shard) as file:
        infos = []
        for name in file.keys():  # noqa: SIM118 -- a safe_open is no mapping
            view = file.get_slice(name)
            stored = view.get_dtype()
            dtype = torch.float32 if stored == WIDE else SAFETENSORS_DTYPES.get(stored)
            if dtype is None:
                raise InputError(f"{root / shard}: tensor {name} has the unsupported dtype {stored}.")
            infos.append(TensorInfo(name, dtype, tuple(view.get_shape()), shard, stored == WIDE))
        return infos


def _open_shard(path: Path) -> safe_open:
    if not path.is_file():
        raise InputError(f"Shard {path} is missing.", "Download the folder again.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        refuse_pointer(path)
        raise InputError(f"{path} is truncated or not a safetensors file ({error}).", "Download it again.") from error


def _check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    if not tensor.is_floating_point():
        return
    # In parts: a check of the whole tensor at once takes more than twice its memory.
    odd = next((part for part in tensor.flatten().split(ELEMENTS_AT_ONCE) if not _is_finite(part)), None)
    if odd is not None:
        kind = "NaN" if bool(torch.isnan(odd).any()) else "Inf"
        raise InputError(
            f"{path}: tensor {name} holds {kind} values.", "The checkpoint is damaged or diverged in training."
        )


def _check_varied(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Refuse a matrix of one value, which no training leaves; norms and biases have one dimension and may be."""
    is_matrix = name.endswith(".weight") and tensor.ndim == 2 and tensor.numel() > 1 and tensor.is_floating_point()
    if not is_matrix or tensor.dtype == torch.float8_e4m3fn:
        return
    first = tensor[0, 0]
    # The first row nearly always settles it; the rest is looked at in parts, to take no memory.
    if all(bool((part == first).all()) for part in (tensor[0], *tensor.flatten().split(ELEMENTS_AT_ONCE))):
        raise InputError(
            f"{path}: all values of tensor {name} are {float(first):g}.",
            "The checkpoint is damaged or was never filled.",
        )


def _is_finite(part: torch.Tensor) -> bool:
    if part.dtype == torch.float8_e4m3fn:  # has NaN but no infinity, and torch no isfinite for it
        return not bool(torch.isnan(part).any())
    if not part.numel():
        return True
    low, high = torch.aminmax(part)  # both are NaN where any value is; one pass and no copy, unlike isfinite
    return bool(torch.isfinite(low) & torch.isfinite(high))
