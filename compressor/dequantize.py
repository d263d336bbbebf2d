"""A quantized checkpoint as the float model that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from compressor.checkpoint import Checkpoint, Weight
from compressor.convert import DEQUANTIZED, Check, Outline, converted_before, unchecked, write_converted
from compressor.inside import told_commit
from compressor.pass_ import Progress
from compressor.writer import copy_companions


def dequantize(
    checkpoint: Checkpoint, out: Path, progress: Progress, check: Check = unchecked
) -> tuple[Checkpoint, str]:
    """Write the values of all quantized weights, float32, into the new folder `out`; other tensors as they are.

    Activations are not rounded any more, and scales of an fp8 key-value cache are left out.

    Returns:
        The float checkpoint, and a sentence that says what was done.

    Raises:
        InputError: `out` holds something else.
    """
    check(Outline(checkpoint.architecture))
    kinds = " and ".join(sorted({scheme.kind for scheme in checkpoint.schemes.values()})) or "an fp8 key-value cache"
    sentence = "; ".join([f"dequantized from {kinds} to float32, {DEQUANTIZED}", *checkpoint.notes])
    provenance = {"import": "dequantized", "input": checkpoint.digest}
    if found := converted_before(out, provenance):
        return found, sentence
    blocks, provenance = _float_blocks(checkpoint, progress), provenance | told_commit(checkpoint.root)
    return write_converted(
        out, checkpoint.config, blocks, provenance, lambda made: copy_companions(checkpoint.root, made)
    ), sentence


def _float_blocks(checkpoint: Checkpoint, progress: Progress) -> Iterator[dict[str, Weight]]:
    total, kept = len(checkpoint.block_names), checkpoint.architecture.tensor_shapes()
    for done, block in enumerate(checkpoint.blocks(), start=1):
        yield {
            name: weight if isinstance(weight, torch.Tensor) else weight.dequantize()
            for name, weight in block.weights.items()
            if name in kept or name == "lm_head.weight"
        }
        progress("dequantizing", done, total)
