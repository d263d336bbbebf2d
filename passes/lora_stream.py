"""Writing a merged checkpoint at the speed of the disk: some rows of a parameter at a time go from file to file.

Reading, changing and writing each have a thread, a few parts between them, so that memory is that of some parts and
of one parameter's adapter, whatever the size of the model's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.ahead import ahead
from compressor.checkpoint import Checkpoint
from compressor.files import whole_folder
from compressor.memory import reuse
from compressor.pass_ import Progress
from compressor.shards import TensorInfo
from compressor.writer import SHARD_BYTES, CheckpointWriter, copy_files
from passes.lora_adapted import AdaptedCheckpoint, resized
from passes.lora_delta import Change, rows_at_once

ELEMENTS_AT_ONCE = 1 << 21  # of a part: long enough for the disk, small enough to stay in the last cache


@dataclass(frozen=True)
class Part:
    """Rows of a parameter as they are stored, from `first` on, and what is to be done to them.

    Attributes:
        transposed: whether they are columns of the weight that the change is made for.
    """

    rows: torch.Tensor
    first: int
    change: Change | None
    transposed: bool


def write_merged(
    adapted: AdaptedCheckpoint, out: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None, progress: Progress
) -> Checkpoint:
    """Write the checkpoint with its adapters merged into the new folder `out`, which appears only when it is whole.

    Args:
        dtype: what every parameter is rounded to; None leaves each in its own.
    """
    reuse()
    shards = _shards(adapted, dtype)
    parts = ahead(_changed(ahead(_read(adapted, shards)), dtype))
    with whole_folder(out) as folder:
        writer = CheckpointWriter(folder, adapted.architecture, dtype or adapted.dtype, cast=dtype is not None)
        for done, tensors in enumerate(shards, start=1):
            writer.stream(tensors, parts)
            progress("lora-merge", done, len(shards))
        copy_files(adapted.companions, folder)
        writer.finish(adapted.config, provenance)
    return Checkpoint.open(out)


def _shards(adapted: AdaptedCheckpoint, dtype: torch.dtype | None) -> list[list[TensorInfo]]:
    """The tensors to be written, those of each file in its order: widest first, so that each lies aligned."""
    gathered: list[list[TensorInfo]] = []
    for block in adapted.block_names:
        infos = [adapted.stored_info(name, dtype) for name in adapted.parameters_of(block)]
        if not gathered or _nbytes(gathered[-1]) + _nbytes(infos) > SHARD_BYTES:
            gathered.append([])
        gathered[-1] += infos
    return [sorted(infos, key=lambda one: (-one.dtype.itemsize, one.name)) for infos in gathered]


def _read(adapted: AdaptedCheckpoint, shards: Sequence[Sequence[TensorInfo]]) -> Iterator[Part]:
    for name in (one.name for tensors in shards for one in tensors):
        change, transposed = adapted.edits.of(name), adapted.architecture.is_transposed(name)
        source = adapted.source(name)
        shape, wanted = adapted.base.tensors[source].shape, adapted.rows_of(name)
        whole = shape[0] != wanted or (change is not None and (transposed or not change.takes_rows))
        first = 0
        for rows in adapted.base.rows(source, shape[0] if whole else rows_at_once(shape, ELEMENTS_AT_ONCE)):
            yield Part(resized(rows, wanted) if whole else rows, first, change, transposed)
            first += len(rows)


def _changed(parts: Iterator[Part], dtype: torch.dtype | None) -> Iterator[torch.Tensor]:
    for part in parts:
        wanted = dtype or part.rows.dtype
        if part.change is None:
            yield part.rows.to(wanted)
        elif part.transposed:
            yield part.change.apply(part.rows.T.contiguous(), wanted).T.contiguous()
        else:
            yield part.change.apply(part.rows, wanted, part.first)


def _nbytes(tensors: Sequence[TensorInfo]) -> int:
    return sum(one.nbytes for one in tensors)
