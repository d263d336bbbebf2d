"""How far a runtime's answers are from what the very same weights mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from compressor.measure.accuracy import Reference, Report, divergence, paired
from compressor.measure.statistics import Estimate, mean
from compressor.target import Session

LIKELY = 8  # tokens of a position that are compared one by one; what nobody would choose may differ by more


@dataclass(frozen=True)
class Difference:
    """A session next to a reference on the same texts.

    Attributes:
        largest: the largest difference of a log-probability, over the reference's likeliest tokens of each position;
            one that the runtime does not tell counts as the least likely that it tells, so that it is farther still.
        where: text and position, from 0, of the largest.
        mean: the mean of these differences.
        kl: KL(reference || runtime), mean over positions, in nats, with its standard error over texts.
        top1: share of positions for which both find the same token most likely.
        positions: how many were compared.
    """

    largest: float
    where: tuple[int, int]
    mean: float
    kl: Estimate
    top1: Estimate
    positions: int


def difference(session: Session, reference: Reference, progress: Report) -> Difference:
    """Ask a session for the texts of a reference."""

    def chunks(window: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, logits in session.logits(reference.tokens[window].numpy()):
            yield start, torch.from_numpy(logits)

    return chunked_difference(chunks, reference, progress)


@torch.no_grad()
def chunked_difference(
    candidate: Callable[[int], Iterator[tuple[int, torch.Tensor]]], reference: Reference, progress: Report
) -> Difference:
    """The same of what a function gives for each text, as `Session.logits` does."""
    original = reference.log_probabilities()
    apart, texts = [], []
    for window in range(len(reference.tokens)):
        found = [
            (_apart(known, ours), divergence(known, ours), known.argmax(-1) == ours.argmax(-1))
            for _, known, ours in paired(reference, original, window, candidate(window))
        ]
        likely, kl, same = (torch.cat(part).double() for part in zip(*found, strict=True))
        apart.append(likely)
        texts.append((kl.mean(), same.mean()))
        progress(window + 1, len(reference.tokens))
    likely, (kl, same) = torch.cat(apart), torch.tensor(texts).T
    where = divmod(int(likely.amax(1).argmax()), len(apart[0]))
    return Difference(
        float(likely.max()), where, float(likely.mean()), mean(kl.numpy()), mean(same.numpy()), len(likely)
    )


def _apart(original: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Absolute differences of the likeliest tokens, [positions, LIKELY]."""
    values, tokens = original.topk(min(LIKELY, original.shape[-1]))
    least = ours.masked_fill(torch.isneginf(ours), torch.inf).amin(-1, keepdim=True)
    return (values - torch.maximum(ours.gather(1, tokens), least)).abs()
