"""Quality of a model against the original on the same evaluation tokens.

The original's final hidden states are kept on disk, not its logits: [tokens, hidden_size] instead of
[tokens, vocab_size]. Logits of both are made from them a few positions at a time.
Standard errors are over windows: tokens of one window are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from compressor.arrays import new_array
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import BREAKS, RunError, first_line
from compressor.measure.scores import Quality, TokenScores, summarize  # noqa: F401 -- all are known from here
from compressor.target import Session

LEAST_REST = 1e-6  # probability of the tokens that are not told; float32 knows no smaller one
LOGITS_AT_ONCE = 1 << 23  # logits made at a time, in elements: 32 MiB a copy in float32

Report = Callable[[int, int], None]  # windows done, windows in all


@dataclass(frozen=True)
class Reference:
    """The original model on the evaluation tokens.

    Attributes:
        tokens: int64 [windows, length].
        states: final hidden states, float32 [windows, length, hidden_size], memory-mapped.
    """

    checkpoint: Checkpoint
    tokens: torch.Tensor
    states: torch.Tensor

    @classmethod
    def make(cls, checkpoint: Checkpoint, tokens: torch.Tensor, store: Path, progress: Report) -> Reference:
        """Run the original once and keep its final states in the file `store`."""
        shape = (*tokens.shape, checkpoint.architecture.hidden_size)
        states = torch.from_numpy(new_array(store, np.float32, shape))
        found = cls(checkpoint, tokens, states)
        states.copy_(_final_states(found.decoder, tokens, progress))
        return found

    @cached_property
    def decoder(self) -> Decoder:
        """The original's. It holds no weights, so that it may be kept."""
        return Decoder(self.checkpoint)

    def log_probabilities(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What gives the log-probabilities [positions, vocab_size] of final states [positions, hidden_size]."""
        head = self.decoder.head()
        return lambda states: torch.log_softmax(self.decoder.logits(states, head), dim=-1)


def checkpoint_scores(checkpoint: Checkpoint, reference: Reference, progress: Report) -> TokenScores:
    """Scores of a step, run block by block with transformers' layer code in float32."""
    if checkpoint is reference.checkpoint:
        decoder, states = reference.decoder, reference.states
    else:
        decoder = Decoder(checkpoint)
        states = _final_states(decoder, reference.tokens, progress)
    head = decoder.head()

    def chunks(window: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, part in _parts(states[window], head.shape[0]):
            yield start, decoder.logits(part, head)

    return _compare(reference, chunks)


class BrokenOff(RunError):  # noqa: N818 -- reads better where it is caught
    """A runtime that broke while it was asked; `scores` are of the windows before, None where there are none."""

    def __init__(self, done: int, windows: int, reason: BaseException, scores: TokenScores | None) -> None:
        super().__init__(f"it broke after {done} of {windows} windows: {first_line(reason)}")
        self.scores = scores


def session_scores(session: Session, reference: Reference, progress: Report) -> TokenScores:
    """Scores of an artifact in its own runtime.

    Raises:
        BrokenOff: the runtime broke, with what it told before.
    """
    windows = reference.tokens.shape[0]

    def chunks(window: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, logits in session.logits(reference.tokens[window].numpy()):
            yield start, torch.from_numpy(logits)
        progress(window + 1, windows)

    return _compare(reference, chunks)


def _final_states(decoder: Decoder, tokens: torch.Tensor, progress: Report) -> torch.Tensor:
    layers = decoder.architecture.layers
    return decoder.final_states(tokens, lambda index: progress(index, layers))


def _compare(reference: Reference, candidate: Callable[[int], Iterator[tuple[int, torch.Tensor]]]) -> TokenScores:
    original = reference.log_probabilities()
    windows: list[dict[str, np.ndarray]] = []
    try:
        for at in range(len(reference.tokens)):
            windows.append(_compare_window(reference, original, at, candidate(at)))
    except BREAKS as error:
        told = _stacked(windows) if windows else None
        raise BrokenOff(len(windows), len(reference.tokens), error, told) from error
    return _stacked(windows)


def _stacked(windows: Sequence[Mapping[str, np.ndarray]]) -> TokenScores:
    names = [field.name for field in fields(TokenScores)]
    return TokenScores(**{name: np.stack([window[name] for window in windows]) for name in names})


@torch.no_grad()
def _compare_window(
    reference: Reference,
    original: Callable[[torch.Tensor], torch.Tensor],
    window: int,
    candidate: Iterator[tuple[int, torch.Tensor]],
) -> dict[str, np.ndarray]:
    """The fields of `TokenScores` for one window, [length - 1] each."""
    tokens = reference.tokens[window]
    parts = [
        _token_scores(known, ours, tokens[first + 1 : first + 1 + len(ours)])
        for first, known, ours in paired(reference, original, window, candidate)
    ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def paired(
    reference: Reference,
    original: Callable[[torch.Tensor], torch.Tensor],
    window: int,
    candidate: Iterator[tuple[int, torch.Tensor]],
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Log-probabilities of the original and of a candidate, a few positions at a time.

    Args:
        original: log-probabilities of the original's final states, see `Reference.log_probabilities`.
        candidate: first position and logits, as `Session.logits` gives them.

    Yields:
        (first position, the original's, the candidate's), float32 [positions, vocab_size] each. The last position of
        a window predicts a token that we do not have, and is left out.
    """
    states = reference.states[window]
    last = len(reference.tokens[window]) - 1
    for start, logits in candidate:
        for offset, part in _parts(logits, logits.shape[1]):
            first = start + offset
            kept = max(0, min(len(part), last - first))
            yield first, original(states[first : first + kept]), log_probabilities(part[:kept])


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Logits as log-probabilities. Rows with -inf, of the likeliest tokens only, are log-probabilities already."""
    return logits if bool(torch.isneginf(logits).any()) else torch.log_softmax(logits, dim=-1)


def divergence(original: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(original || ours) of each row in nats; tokens that ours does not tell count as one, which is a lower bound.

    Args:
        original: log-probabilities [positions, vocab_size].
        ours: the same; -inf where they are not told.
    """
    terms = original.exp() * (original - ours)
    hidden = torch.isneginf(ours)
    if not bool(hidden.any()):
        return terms.sum(-1)
    rest, known = (
        (1 - row.double().exp().masked_fill(hidden, 0).sum(-1)).clamp(min=LEAST_REST) for row in (ours, original)
    )
    return terms.masked_fill(hidden, 0).sum(-1) + known * (known / rest).log()


def _token_scores(original: torch.Tensor, ours: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    picked = targets.unsqueeze(1)
    first, second = original.argmax(-1), ours.argmax(-1)
    return {
        "original_loss": -original.gather(1, picked).squeeze(1),
        "loss": -ours.gather(1, picked).squeeze(1),
        "kl": divergence(original, ours),
        "same_top1": first == second,
        "original_correct": first == targets,
        "correct": second == targets,
    }


def _parts(rows: torch.Tensor, vocab_size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Runs of rows whose logits are about LOGITS_AT_ONCE elements."""
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    for start in range(0, rows.shape[0], size):
        yield start, rows[start : start + size]
