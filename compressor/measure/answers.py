"""What tasks ask of a model, whatever runs it: log-likelihoods of given continuations, and greedy ones of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, full_model
from compressor.errors import InputError, RunError
from compressor.measure import BATCH_SIZE
from compressor.measure.accuracy import LOGITS_AT_ONCE, Report, log_probabilities
from compressor.measure.batches import in_groups, padded_behind
from compressor.measure.torch_session import TorchSession, check_memory
from compressor.target import BatchSession, Ended, Session

STATES_BYTES = 256 << 20  # of hidden states that go through the blocks together
LENGTH_STEP = 1.25  # texts that go together are at most so many times as long as the shortest


@dataclass(frozen=True)
class Continuation:
    """Token ids, of which those from `first` on are judged; before them is at least one."""

    tokens: Sequence[int]
    first: int


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a continuation in nats, and whether each of its tokens is the most likely one."""

    total: float
    greedy: bool


class Answerer(Protocol):
    """A model that tasks can be asked of."""

    runtime: str

    @property
    def longest(self) -> int | None:
        """Tokens of a text that its runtime has room for, see `Session.longest`."""
        ...

    def likelihoods(self, texts: Sequence[Continuation], progress: Report) -> list[Likelihood]:
        """One for each text, in order."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, ended: Ended, progress: Report) -> list[list[int]]:
        """Greedy tokens behind each prompt, in order: at most `limit` of them, or until `ended`."""
        ...

    def close(self) -> None: ...


def check_room(answerer: Answerer, length: int) -> None:
    """See that a text of so many tokens can be asked.

    Raises:
        InputError: the runtime has less room, whatever the model's context is.
    """
    if answerer.longest is not None and length > answerer.longest:
        raise InputError(
            f"A text takes {length} tokens, and {answerer.runtime} has room for {answerer.longest} here.",
            "Shorten it, or take it out.",
        )


class SessionAnswerer:
    """An artifact in its own runtime: several texts at once where that takes them, else one. Implements `Answerer`.

    Args:
        batch_size: of texts.
    """

    def __init__(self, session: Session, batch_size: int = BATCH_SIZE) -> None:
        self.runtime, self.longest, self._session = session.runtime, session.longest, session
        self._together = batch_size if isinstance(session, BatchSession) else 1

    def likelihoods(self, texts: Sequence[Continuation], progress: Report) -> list[Likelihood]:
        lengths = [len(text.tokens) for text in texts]
        check_room(self, max(lengths, default=0))
        found: dict[int, Likelihood] = {}
        for rows in in_groups(lengths, lambda count, shortest, longest: count <= self._together):
            found |= dict(zip(rows, self._likelihoods([texts[row] for row in rows]), strict=True))
            progress(len(found), len(texts))
        return [found[row] for row in range(len(texts))]

    def _likelihoods(self, texts: Sequence[Continuation]) -> list[Likelihood]:
        parts: list[list[tuple[float, bool]]] = [[] for _ in texts]
        for number, start, logits in self._logits([np.array(text.tokens, np.int64) for text in texts]):
            text = texts[number]
            # The logits of a position are of the token behind it.
            skipped = max(0, text.first - 1 - start)
            kept = torch.from_numpy(logits[skipped : len(text.tokens) - 1 - start])
            first = start + skipped + 1
            if len(kept):
                parts[number].append(_judge(kept, torch.tensor(text.tokens[first : first + len(kept)])))
        return [_joined(part) for part in parts]

    def _logits(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """See `BatchSession.logits_of`."""
        if isinstance(self._session, BatchSession):
            return self._session.logits_of(texts)
        return ((number, *part) for number, text in enumerate(texts) for part in self._session.logits(text))

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, ended: Ended, progress: Report) -> list[list[int]]:
        lengths = [len(prompt) for prompt in prompts]
        check_room(self, max(lengths, default=0) + limit)
        found: dict[int, list[int]] = {}
        for rows in in_groups(lengths, lambda count, shortest, longest: count <= self._together):
            asked = [np.array(prompts[row], np.int64) for row in rows]
            found |= dict(zip(rows, self._generated(asked, limit, ended), strict=True))
            progress(len(found), len(prompts))
        return [found[row] for row in range(len(prompts))]

    def _generated(self, prompts: Sequence[np.ndarray], limit: int, ended: Ended) -> list[list[int]]:
        if isinstance(self._session, BatchSession):
            return self._session.generate(prompts, limit, ended)
        return [self._one(prompt, limit, ended) for prompt in prompts]

    def _one(self, prompt: np.ndarray, limit: int, ended: Ended) -> list[int]:
        found = [self._session.prefill(prompt[None], limit)]
        while len(found) < limit and not ended(found):
            found.append(self._session.decode(found[-1]))
        return found

    def close(self) -> None:
        self._session.close()


class CheckpointAnswerer:
    """A step, as it is defined: in float32, its inputs rounded as its schemes say. Implements `Answerer`.

    Likelihoods go through it block by block, as many texts together as STATES_BYTES hold. A generation needs the whole
    model in memory.

    Args:
        batch_size: of prompts that are gone on with together.
    """

    runtime = "llmc, float32"
    longest = None

    def __init__(self, checkpoint: Checkpoint, batch_size: int = BATCH_SIZE) -> None:
        self._checkpoint, self._batch_size = checkpoint, batch_size
        self._decoder = Decoder(checkpoint)
        self._whole: SessionAnswerer | None = None

    def likelihoods(self, texts: Sequence[Continuation], progress: Report) -> list[Likelihood]:
        found: dict[int, Likelihood] = {}
        head = self._decoder.head()
        for rows in self._groups(texts):
            group = [texts[row] for row in rows]
            tokens = padded_behind([np.array(text.tokens, np.int64) for text in group])
            states = self._decoder.final_states(torch.from_numpy(tokens))
            found |= {row: self._likelihood(texts[row], states[at], head) for at, row in enumerate(rows)}
            progress(len(found), len(texts))
        return [found[row] for row in range(len(texts))]

    def _groups(self, texts: Sequence[Continuation]) -> Iterator[list[int]]:
        """Numbers of texts of about the same length, as many as go through the blocks together."""
        width = 4 * self._checkpoint.architecture.hidden_size

        def fits(count: int, shortest: int, longest: int) -> bool:
            return count * longest * width <= STATES_BYTES and longest <= LENGTH_STEP * shortest

        return in_groups([len(text.tokens) for text in texts], fits)

    def _likelihood(self, text: Continuation, states: torch.Tensor, head: torch.Tensor) -> Likelihood:
        positions = states[text.first - 1 : len(text.tokens) - 1]
        targets = torch.tensor(text.tokens[text.first :])
        size = max(1, LOGITS_AT_ONCE // len(head))
        pairs = zip(positions.split(size), targets.split(size), strict=True)
        return _joined([_judge(self._decoder.logits(part, head), expected) for part, expected in pairs])

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, ended: Ended, progress: Report) -> list[list[int]]:
        if self._whole is None:
            self._whole = SessionAnswerer(self._open(), self._batch_size)
        return self._whole.generate(prompts, limit, ended, progress)

    def _open(self) -> Session:
        if self._checkpoint.kv_cache:
            raise RunError("A step with an fp8 key-value cache cannot generate here; give the artifact made of it.")
        check_memory(self._checkpoint, torch.float32)
        return TorchSession(full_model(self._checkpoint, torch.float32, rounds_inputs=True))

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()


@torch.no_grad()
def _judge(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, bool]:
    """Log-likelihood of targets [positions] under logits [positions, vocab_size], and whether all are the largest."""
    known = log_probabilities(logits)
    total = known.gather(1, targets.unsqueeze(1)).double().sum()
    return float(total), bool((known.argmax(-1) == targets).all())


def _joined(parts: Sequence[tuple[float, bool]]) -> Likelihood:
    return Likelihood(sum(total for total, _ in parts), all(greedy for _, greedy in parts))
