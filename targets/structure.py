"""Rules of structure for folders that are ordinary checkpoints, and for those in other tools' layouts."""

from __future__ import annotations

from pathlib import Path

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.prequantized import PackedFolder

PACKED_RULES = "names, shapes and dtypes of all tensors are those that the quantization settings ask for"
CHECKPOINT_RULES = "names, shapes and dtypes of all tensors are those that config.json asks for"


def broken_checkpoint_rules(root: Path) -> list[str]:
    """The first reason why a folder cannot be opened as a checkpoint, if there is one."""
    try:
        Checkpoint.open(root)
    except InputError as error:
        return [str(error)]
    return []


def broken_packed_rules(root: Path) -> list[str]:
    """The first reason why a folder of GPTQModel's or AutoAWQ's layout cannot be opened, if there is one."""
    try:
        PackedFolder.open(root)
    except InputError as error:
        return [str(error)]
    return []
