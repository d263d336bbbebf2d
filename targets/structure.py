"""Rules of structure for folders that are ordinary checkpoints."""

from __future__ import annotations

from pathlib import Path

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError

CHECKPOINT_RULES = "names, shapes and dtypes of all tensors are those that config.json asks for"


def broken_checkpoint_rules(root: Path) -> list[str]:
    """The first reason why a folder cannot be opened as a checkpoint, if there is one."""
    try:
        Checkpoint.open(root)
    except InputError as error:
        return [str(error)]
    return []
