"""Translation validation: an artifact is read back by other code than wrote it, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compressor.checkpoint import Checkpoint, Weight
from compressor.ledger import Verification
from compressor.low_rank import LowRank, same_factors
from compressor.quantized import QuantizedWeight
from compressor.target import Artifact, Target


def verify(
    target: Target,
    artifact: Artifact,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
    seen: Callable[[str, Weight], None] = lambda name, weight: None,
) -> Verification:
    """Compare every weight of the artifact with the checkpoint it was lowered from; `seen` is shown each of them.

    Quantized weights must have equal integers, scales and zero points; float ones equal bits after the cast
    that the target declares. A weight that is missing or left over counts as a mismatch.
    """
    missing = dict.fromkeys(checkpoint.parameters)
    total = len(missing)
    mismatches = []
    for done, (name, found) in enumerate(target.read_back(artifact), start=1):
        seen(name, found)
        if name not in missing:
            mismatches.append(f"{name} (not in the checkpoint)")
            continue
        del missing[name]
        expected = target.expected(name, checkpoint.read([name])[name], checkpoint.architecture)
        if not same_bits(expected, found):
            mismatches.append(name)
        progress(done, total)
    mismatches += [f"{name} (missing)" for name in missing]
    return Verification(target.reader_of(checkpoint.schemes), total, mismatches)


def same_bits(expected: Weight, found: Weight) -> bool:
    """Whether two weights are equal bit for bit, dtype included."""
    if isinstance(expected, QuantizedWeight) and isinstance(found, QuantizedWeight):
        return expected.same_bits(found)
    if isinstance(expected, LowRank) and isinstance(found, LowRank):
        return same_factors(expected, found)
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        # NaN is refused on reading and -0.0 equals 0.0 only as a number, so bytes are compared.
        same_kind = expected.dtype == found.dtype and expected.shape == found.shape
        return same_kind and torch.equal(_bytes(expected), _bytes(found))
    return False


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
