"""What measuring finds, as plain values: what reads a ledger imports them, and waits for no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressor.measure.statistics import Estimate, exponential, mean


@dataclass(frozen=True)
class Quality:
    """Perplexity, and divergence from the original, with standard errors over windows.

    Attributes:
        perplexity: exp of the mean negative log-likelihood.
        perplexity_increase: relative to the original on the same windows (paired), 0 is no change.
        kl: KL(original || this), mean over tokens, in nats.
        top1: share of tokens for which both find the same token most likely.
    """

    perplexity: Estimate
    perplexity_increase: Estimate
    kl: Estimate
    top1: Estimate


@dataclass(frozen=True)
class TokenScores:
    """What the original and another model make of every predicted token. All arrays are [windows, length - 1].

    Attributes:
        original_loss: negative log-likelihood of the token under the original, in nats, float32.
        loss: the same under the other model.
        kl: KL(original || other) of the two predictions, in nats, float32.
        same_top1: whether both find the same token most likely.
        original_correct: whether the token is the one that the original found most likely.
        correct: whether it is the one that the other model found most likely.
    """

    original_loss: np.ndarray
    loss: np.ndarray
    kl: np.ndarray
    same_top1: np.ndarray
    original_correct: np.ndarray
    correct: np.ndarray

    def windows(self) -> np.ndarray:
        """Means over each window as `summarize` takes them, float64 [windows, 4]."""
        kept = (self.original_loss, self.loss, self.kl, self.same_top1)
        return np.stack([column.mean(axis=1, dtype=np.float64) for column in kept], axis=1)

    @property
    def quality(self) -> Quality:
        return summarize(self.windows())


@dataclass(frozen=True)
class LayerError:
    """What a pass did to a decoder layer. Both are medians over tokens: a first token can be a thousand times as large.

    Attributes:
        layer: number of the decoder layer.
        own: difference of its outputs from what it gave before the pass, on the same inputs, relative to what it adds
            to the residual stream.
        drift: difference of the residual stream behind it, with all layers before it as the pass left them, relative
            to that stream.
    """

    layer: int
    own: float
    drift: float


def summarize(windows: np.ndarray) -> Quality:
    """Quality with its standard errors.

    Args:
        windows: float64 [windows, 4], means over a window's predicted tokens: the original's loss, this one's loss,
            KL divergence, share of tokens with the same first choice.
    """
    original, losses, divergence, agreement = windows.T
    return Quality(
        perplexity=exponential(mean(losses)),
        perplexity_increase=exponential(mean(losses - original), shift=-1.0),
        kl=mean(divergence),
        top1=mean(agreement),
    )
