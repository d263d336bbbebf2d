"""Q4_0 and Q8_0 as what they are: integers in blocks of 32, and the float16 scale of each block.

Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (`block_q4_0`, `block_q8_0`) and ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from compressor.errors import InputError
from compressor.gguf.container import GgufFile

BLOCK = 32
BITS = {"Q4_0": 4, "Q8_0": 8}
# llmc's own: inputs that share a scale, for each tensor in the file's order, 0 where it has none. llama.cpp does not
# look at it; whoever reads the file learns which repeated scales are one.
GROUP_SIZES = "llmc.group_sizes"


def group_sizes(file: GgufFile) -> dict[str, int]:
    """Inputs that share a scale, for each tensor in such blocks: what llmc noted, or else the block.

    Raises:
        InputError: the note does not fit the file.
    """
    noted = file.metadata.get(GROUP_SIZES) or [0] * len(file.tensors)
    if len(noted) != len(file.tensors):
        raise InputError(f"{file.path} is damaged: {GROUP_SIZES} names {len(noted)} of {len(file.tensors)} tensors.")
    sizes = {}
    for tensor, size in zip(file.tensors.values(), noted, strict=True):
        if tensor.kind not in BITS:
            continue
        sizes[tensor.name] = size or BLOCK
        if sizes[tensor.name] % BLOCK or tensor.shape[-1] % sizes[tensor.name]:
            raise InputError(f"{file.path} is damaged: {GROUP_SIZES} says {size} of {tensor.name}.")
    return sizes


def read_integers(file: GgufFile, name: str, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A tensor in blocks of Q4_0 or Q8_0: int8 codes [rows, columns] and float32 scales [rows, groups].

    Raises:
        InputError: the blocks of a group do not have one scale, or it is no finite number.
    """
    stored = file.tensors[name]
    columns = stored.shape[-1]
    codes = np.empty((stored.rows, columns), np.int8)
    scales = np.empty((stored.rows, columns // group_size), np.float32)
    for rows, raw in file.rows(name):
        blocks = raw.reshape(len(raw), columns // BLOCK, -1)
        codes[rows] = _codes(blocks[..., 2:], BITS[stored.kind]).reshape(len(raw), columns)
        halves = np.ascontiguousarray(blocks[..., :2]).view("<u2").reshape(len(raw), -1, group_size // BLOCK)
        if (halves != halves[..., :1]).any():
            raise InputError(f"{file.path} is damaged: scales of {name} differ within groups of {group_size}.")
        scales[rows] = np.ascontiguousarray(halves[..., 0]).view("<f2")
    if not np.isfinite(scales).all():
        raise InputError(f"{file.path}: tensor {name} holds NaN or Inf values.", "The file is damaged.")
    return codes, scales


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """The integers of blocks: bytes as they are; or 16 low nibbles and then 16 high ones, less 8."""
    if bits == 8:
        return packed.view(np.int8)
    return np.concatenate((packed & 15, packed >> 4), axis=-1).astype(np.int8) - 8
