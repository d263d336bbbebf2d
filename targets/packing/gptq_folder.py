"""Reads GPTQ folders, from the text of the layout alone: the safetensors library, numpy, no code of the writing side.

`X.qweight` is int32 [K * bits / 32, N]: element i of a word, at bit i * bits, is the unsigned integer of input feature
(row * 32 / bits + i). `X.qzeros` is int32 [G, N * bits / 32], the same along N; where the settings say gptq and not
gptq_v2, one is to be added to each. `X.scales` is [G, N] and `X.g_idx` [K] the group of each input feature.
The weight is (integer - zero point) * scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing.stored import read_tensor, tensor_holders

READER = "unpacker written from the layout's text (numpy)"
PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Settings:
    """What a folder's two config files say; they must agree."""

    bits: int
    symmetric: bool
    group_size: int
    first_version: bool

    @classmethod
    def read(cls, root: Path) -> Settings:
        own = json.loads((root / "quantize_config.json").read_text(encoding="utf-8"))
        if json.loads((root / "config.json").read_text(encoding="utf-8"))["quantization_config"] != own:
            raise RunError("quantize_config.json and config.json describe the quantization differently.")
        return cls(own["bits"], own["sym"], own["group_size"], own["checkpoint_format"] == "gptq")


def broken_settings(root: Path) -> list[str]:
    """What is wrong with the two config files, in a sentence, if anything is."""
    try:
        Settings.read(root)
    except (RunError, OSError, ValueError, KeyError) as error:
        return [str(error) if isinstance(error, RunError) else f"A config file cannot be read ({error})."]
    return []


def unpack_integers(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 words [rows, n] to unsigned integers, int16 [rows, n * 32 / bits]."""
    unsigned = words.view(np.uint32)
    integers = np.empty((*words.shape, 32 // bits), np.int16)
    for place in range(32 // bits):
        integers[..., place] = (unsigned >> (place * bits)) % 2**bits
    return integers.reshape(len(words), -1)


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of a folder by its parameter name, one at a time.

    Raises:
        RunError: the settings contradict each other or what is stored.
    """
    settings, holders = Settings.read(root), tensor_holders(root)
    for name in sorted(holders):
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            yield f"{layer}.weight", _linear(layer, holders, settings)
        elif part not in PARTS or f"{layer}.qweight" not in holders:
            yield name, read_tensor(name, holders)


def _linear(layer: str, holders: Mapping[str, Path], settings: Settings) -> QuantizedWeight:
    qweight, qzeros, scales, g_idx = (read_tensor(f"{layer}.{part}", holders) for part in PARTS)
    _check_groups(layer, g_idx.numpy(), len(scales), settings)
    codes = _signed(unpack_integers(np.ascontiguousarray(qweight.numpy().T), settings.bits), settings)
    zeros = _signed(_zero_points(layer, qzeros.numpy(), settings).T, settings)
    # A symmetric folder that holds other zero points than the middle is shown as what it is.
    zero_points = None if settings.symmetric and not bool(zeros.any()) else zeros
    group_size = None if settings.group_size == -1 else settings.group_size
    scheme = Scheme(settings.bits, group_size, settings.symmetric)
    return QuantizedWeight(codes, scales.T.contiguous().float(), zero_points, scheme)


def _signed(integers: np.ndarray, settings: Settings) -> torch.Tensor:
    """Unsigned integers as int8 around the middle of their range."""
    return torch.from_numpy(np.ascontiguousarray(integers - 2 ** (settings.bits - 1), np.int8))


def _zero_points(layer: str, words: np.ndarray, settings: Settings) -> np.ndarray:
    stored = unpack_integers(words, settings.bits)
    if not settings.first_version:
        return stored
    if bool((stored == 2**settings.bits - 1).any()):
        raise RunError(f"A zero point of {layer} is stored as -1, on which readers of GPTQ version 1 disagree.")
    return stored + 1


def _check_groups(layer: str, index: np.ndarray, groups: int, settings: Settings) -> None:
    width = len(index) // groups if settings.group_size == -1 else settings.group_size
    if not np.array_equal(index, np.arange(len(index)) // width):
        raise RunError(f"The g_idx of {layer} does not say groups of {width} neighbours.")
