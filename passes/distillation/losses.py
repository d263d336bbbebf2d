"""What a student is trained to lower: divergence from the teacher's likeliest tokens and from its hidden states.

Papers: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (temperature, and the factor T² that keeps
gradients of one size); Agarwal et al., "On-Policy Distillation of Language Models", 2023 (reverse KL, JSD).

A teacher is known by its likeliest tokens. Everything else is one more outcome, on both sides, so that what is lowered
is a divergence of true distributions: a lower bound of the one over the whole vocabulary, and equal to it when all
tokens are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]

LEAST_REST = 1e-6  # probability of all tokens that are not told; float32 knows no smaller one


@dataclass(frozen=True)
class Likeliest:
    """The likeliest tokens of each position, and what the teacher makes of them.

    Attributes:
        indices: int64 [..., k].
        log_probabilities: float32 [..., k], at the temperature of the loss.
    """

    indices: torch.Tensor
    log_probabilities: torch.Tensor


def likeliest(logits: torch.Tensor, count: int, temperature: float) -> Likeliest:
    """The `count` likeliest tokens of logits [..., vocab_size]."""
    values, indices = logits.topk(min(count, logits.shape[-1]), dim=-1)
    whole = torch.logsumexp(logits / temperature, dim=-1, keepdim=True)
    return Likeliest(indices, values / temperature - whole)


def divergence(logits: torch.Tensor, teacher: Likeliest, kind: Divergence, temperature: float) -> torch.Tensor:
    """Divergence of a student's logits [..., vocab_size] from the teacher, in nats times T², float32 [...].

    Args:
        kind: forward KL(teacher || student), reverse KL(student || teacher), or their mean with respect to the
            distribution in the middle (Jensen-Shannon).
    """
    scaled = logits.float() / temperature
    told = scaled.gather(-1, teacher.indices) - torch.logsumexp(scaled, dim=-1, keepdim=True)
    ours, theirs = with_rest(told), with_rest(teacher.log_probabilities.float())
    return temperature**2 * _DIVERGENCES[kind](theirs, ours)


def with_rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [..., k] and, as one more, that of everything else: [..., k + 1]."""
    told = log_probabilities.exp().sum(-1, keepdim=True)
    return torch.cat([log_probabilities, torch.log1p(-told.clamp(max=1 - LEAST_REST))], dim=-1)


def hidden_error(states: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared error of hidden states [..., hidden_size] as a share of the teacher's mean square, a scalar."""
    wanted = teacher.float()
    return (states.float() - wanted).square().mean() / wanted.square().mean()


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first.exp() * (first - second)).sum(-1)


def _jsd(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    middle = torch.logaddexp(theirs, ours) - math.log(2)
    return (_kl(theirs, middle) + _kl(ours, middle)) / 2


_DIVERGENCES = {"forward_kl": _kl, "reverse_kl": lambda theirs, ours: _kl(ours, theirs), "jsd": _jsd}
