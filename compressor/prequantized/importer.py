"""Turns a folder in a foreign layout into an ordinary one, one block in memory at a time, without rounding anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from compressor.checkpoint import Checkpoint, Weight
from compressor.convert import converted_before, write_converted
from compressor.files import digest_files
from compressor.pass_ import Progress
from compressor.prequantized.folder import PackedFolder
from compressor.writer import copy_companions


def import_prequantized(root: Path, out: Path, progress: Progress) -> tuple[Checkpoint, str]:
    """Write the integers, scales and zero points of a GPTQ or AWQ folder into the new folder `out`, as they are.

    Returns:
        The checkpoint, and a sentence that says what was done.

    Raises:
        InputError: the folder cannot be read, or `out` holds something else.
    """
    folder = PackedFolder.open(root)
    sentence = f"re-laid from {folder.layout} to compressed-tensors; integers, zero points and scales are unchanged"
    provenance = {"import": str(folder.layout), "files": digest_files(root, ["config.json", *folder.shards])}
    if found := converted_before(out, provenance):
        return found, sentence
    checkpoint = write_converted(
        out,
        folder.config,
        _counted(folder, progress),
        provenance,
        lambda made: copy_companions(root, made),
        dtype=folder.dtype,
    )
    return checkpoint, sentence


def _counted(folder: PackedFolder, progress: Progress) -> Iterator[Mapping[str, Weight]]:
    total = folder.architecture.layers + 2
    for done, weights in enumerate(folder.blocks()):
        progress(f"re-laying {folder.layout}", done, total)
        yield weights
    progress(f"re-laying {folder.layout}", total, total)
