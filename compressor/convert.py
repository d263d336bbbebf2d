"""Writes a model that came in a foreign format as an ordinary folder, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor.architecture import Architecture, resolve
from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import InputError
from compressor.files import whole_folder
from compressor.json_file import read_object
from compressor.quantized import Scheme
from compressor.writer import BESIDE, CONTENT, STEP_FILE, CheckpointWriter, check_content

DEQUANTIZED = "as --requantize asks; a pass that rounds these weights rounds them for the second time"

NOT_COMPARED = (CONTENT, BESIDE, "commit")  # two commits may hold the same bytes


@dataclass(frozen=True)
class Outline:
    """What headers tell of a model before it is converted: as much of a `Checkpoint` as plans are made of."""

    architecture: Architecture
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    kv_cache: bool = False


Check = Callable[[Outline], None]
"""Raises an InputError where nothing can be made of such a model: then it is not converted."""


def unchecked(outline: Outline) -> None:
    """Any model is converted."""


def write_converted(
    out: Path,
    config: Mapping[str, Any],
    blocks: Iterable[Mapping[str, Weight]],
    provenance: Mapping[str, Any],
    companions: Callable[[Path], None],
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Stream `blocks` of weights into the new folder `out`, which appears only when it is whole and valid.

    Args:
        provenance: written to the step file: what was converted.
        companions: writes the files beside the weights (tokenizer, generation_config.json) into the folder it is given.
        dtype: the model's, in which the scales of quantized weights are stored.

    Raises:
        InputError: `out` exists, or what was converted is not a model that llmc can read.
    """
    with whole_folder(out) as folder:
        writer = CheckpointWriter(folder, resolve(config), dtype)
        for weights in blocks:
            writer.add(weights)
        writer.finish(config, provenance, companions)
        Checkpoint.open(folder)
    return Checkpoint.open(out)


def converted_before(out: Path, provenance: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint in `out`, if an earlier run left it there with this very provenance; None if `out` is free.

    Raises:
        InputError: `out` holds something else.
    """
    if not out.exists():
        return None
    step = out / STEP_FILE
    known = read_object(step) if step.is_file() else {}
    if {key: value for key, value in known.items() if key not in NOT_COMPARED} == provenance:
        return check_content(Checkpoint.open(out), known)
    raise InputError(f"{out} already exists, and was not converted from this model.", "Choose another folder.")
