"""Digests of weights: what an artifact's manifest keeps of each, to be compared without the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import torch

from compressor.checkpoint import Weight
from compressor.low_rank import LowRank
from compressor.quantized import QuantizedWeight

HEX_DIGITS = 32  # of the SHA-256 that are kept: these tell damage apart, and there is one for each part of each weight

Fingerprint = Mapping[str, str]  # part of a weight -> digest of its dtype, shape and bytes


def fingerprint(weight: Weight) -> dict[str, str]:
    """Digests of a weight's parts: `values`, the two of factors, or `codes`, `scales` and what else there is."""
    if isinstance(weight, torch.Tensor):
        return {"values": tensor_digest(weight)}
    return {part: tensor_digest(tensor) for part, tensor in _parts(weight).items() if tensor is not None}


def differing_parts(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """Parts that are not the same, those included that only one side has."""
    return [part for part in {**expected, **found} if expected.get(part) != found.get(part)]


def tensor_digest(tensor: torch.Tensor) -> str:
    """Digest of a tensor's dtype, shape and bytes."""
    digest = sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.numel():
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:HEX_DIGITS]


def _parts(weight: QuantizedWeight | LowRank) -> dict[str, torch.Tensor | None]:
    if isinstance(weight, LowRank):
        return {"down": weight.down, "up": weight.up}
    branch = {} if weight.branch is None else _parts(weight.branch)
    return branch | {
        "codes": weight.codes,
        "scales": weight.scales,
        "zero points": weight.zero_points,
        "input scale": weight.input_scale,
        "tensor scale": weight.tensor_scale,
        "input factors": weight.input_factors,
    }
