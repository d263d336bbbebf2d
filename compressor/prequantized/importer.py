"""Turns a folder in a foreign layout into an ordinary one, one block in memory at a time, without rounding anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from compressor.checkpoint import Checkpoint, Weight
from compressor.convert import DEQUANTIZED, Check, Outline, converted_before, unchecked, write_converted
from compressor.errors import InputError
from compressor.files import digest_files
from compressor.inside import told_commit
from compressor.pass_ import Progress
from compressor.prequantized.folder import PackedFolder
from compressor.prequantized.parts import REMEDY
from compressor.prequantized.settings import CONFIGS
from compressor.writer import copy_companions


def import_prequantized(
    root: Path, out: Path, progress: Progress, dequantize: bool = False, check: Check = unchecked
) -> tuple[Checkpoint, str]:
    """Write the integers, scales and zero points of another tool's folder into the new folder `out`.

    Args:
        dequantize: write the values that they stand for instead, in float32.

    Returns:
        The checkpoint, and a sentence that says what was done.

    Raises:
        InputError: the folder cannot be read, or `out` holds something else.
    """
    folder = PackedFolder.open(root).settled()
    if folder.layout.only_values and not dequantize:
        raise InputError(
            f"{root} is quantized as {folder.layout}, which no step or target of llmc holds as it is.",
            REMEDY,
        )
    check(Outline(folder.architecture) if dequantize else Outline(folder.architecture, folder.schemes, folder.kv_cache))
    done = f"dequantized from {folder.layout} to float32, {DEQUANTIZED}" if dequantize else _kept(folder)
    sentence = "; ".join([done, *folder.notes])
    described = [name for name in CONFIGS if (root / name).is_file()]
    kind = f"{folder.layout}, dequantized" if dequantize else str(folder.layout)
    provenance = {"import": kind, "files": digest_files(root, [*described, *folder.shards])}
    if found := converted_before(out, provenance):
        return found, sentence
    checkpoint = write_converted(
        out,
        folder.config,
        _counted(folder, dequantize, progress),
        provenance | told_commit(root),
        lambda made: copy_companions(root, made),
        dtype=folder.dtype,
    )
    return checkpoint, sentence


def _kept(folder: PackedFolder) -> str:
    re_laid = f"repacked from {folder.layout} to compressed-tensors; "
    if folder.factors == "folded":
        return re_laid + (
            "integers are unchanged, and so are scales but for those into which pre_quant_scale is folded, exactly"
        )
    held = "; pre_quant_scale, which cannot be folded exactly, is held beside them" if folder.factors == "held" else ""
    return f"{re_laid}integers, zero points and scales are unchanged{held}"


def _counted(folder: PackedFolder, dequantize: bool, progress: Progress) -> Iterator[Mapping[str, Weight]]:
    total, what = folder.architecture.layers + 2, "dequantizing" if dequantize else "repacking"
    for done, weights in enumerate(folder.dequantized_blocks() if dequantize else folder.blocks()):
        progress(f"{what} {folder.layout}", done, total)
        yield weights
    progress(f"{what} {folder.layout}", total, total)
