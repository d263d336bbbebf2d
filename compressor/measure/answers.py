"""What tasks ask of a model, whatever runs it: log-likelihoods of given continuations, and greedy ones of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, full_model
from compressor.errors import InputError, RunError
from compressor.measure.accuracy import LOGITS_AT_ONCE, Report, log_probabilities
from compressor.measure.torch_session import TorchSession, check_memory
from compressor.target import Session

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


Ended = Callable[[list[int]], bool]  # whether a generation that has come so far is to end


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

    def generate(self, prompt: Sequence[int], limit: int, ended: Ended) -> list[int]:
        """Greedy tokens behind a prompt: at most `limit` of them, or until `ended`."""
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
    """An artifact in its own runtime, one text at a time. Implements `Answerer`."""

    def __init__(self, session: Session) -> None:
        self.runtime, self.longest, self._session = session.runtime, session.longest, session

    def likelihoods(self, texts: Sequence[Continuation], progress: Report) -> list[Likelihood]:
        check_room(self, max((len(text.tokens) for text in texts), default=0))
        found = []
        for number, text in enumerate(texts, start=1):
            found.append(self._likelihood(text))
            progress(number, len(texts))
        return found

    def _likelihood(self, text: Continuation) -> Likelihood:
        tokens = np.array(text.tokens, np.int64)
        parts = []
        for start, logits in self._session.logits(tokens):
            # The logits of a position are of the token behind it.
            skipped = max(0, text.first - 1 - start)
            kept = torch.from_numpy(logits[skipped : len(tokens) - 1 - start])
            first = start + skipped + 1
            if len(kept):
                parts.append(_judge(kept, torch.from_numpy(tokens[first : first + len(kept)])))
        return _joined(parts)

    def generate(self, prompt: Sequence[int], limit: int, ended: Ended) -> list[int]:
        check_room(self, len(prompt) + limit)
        found = [self._session.prefill(np.array([prompt], np.int64), limit)]
        while len(found) < limit and not ended(found):
            found.append(self._session.decode(found[-1]))
        return found

    def close(self) -> None:
        self._session.close()


class CheckpointAnswerer:
    """A step, as it is defined: in float32, its inputs rounded as its schemes say. Implements `Answerer`.

    Likelihoods go through it block by block. A generation needs the whole model in memory.
    """

    runtime = "llmc, float32"
    longest = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._decoder = Decoder(checkpoint)
        self._whole: SessionAnswerer | None = None

    def likelihoods(self, texts: Sequence[Continuation], progress: Report) -> list[Likelihood]:
        found: dict[int, Likelihood] = {}
        head = self._decoder.head()
        for rows in self._groups(texts):
            group = [texts[row] for row in rows]
            tokens = torch.zeros(len(group), max(len(one.tokens) for one in group), dtype=torch.int64)
            for row, one in zip(tokens, group, strict=True):
                row[: len(one.tokens)] = torch.tensor(one.tokens)
            states = self._decoder.final_states(tokens)  # what stands behind a text does not change it
            found |= {row: self._likelihood(texts[row], states[at], head) for at, row in enumerate(rows)}
            progress(len(found), len(texts))
        return [found[row] for row in range(len(texts))]

    def _groups(self, texts: Sequence[Continuation]) -> Iterator[list[int]]:
        """Numbers of texts of about the same length, as many as go through the blocks together."""
        width = 4 * self._checkpoint.architecture.hidden_size
        group: list[int] = []
        for row in sorted(range(len(texts)), key=lambda row: len(texts[row].tokens)):
            length = len(texts[row].tokens)
            full = (len(group) + 1) * length * width > STATES_BYTES
            if group and (full or length > LENGTH_STEP * len(texts[group[0]].tokens)):
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _likelihood(self, text: Continuation, states: torch.Tensor, head: torch.Tensor) -> Likelihood:
        positions = states[text.first - 1 : len(text.tokens) - 1]
        targets = torch.tensor(text.tokens[text.first :])
        size = max(1, LOGITS_AT_ONCE // len(head))
        pairs = zip(positions.split(size), targets.split(size), strict=True)
        return _joined([_judge(self._decoder.logits(part, head), expected) for part, expected in pairs])

    def generate(self, prompt: Sequence[int], limit: int, ended: Ended) -> list[int]:
        if self._whole is None:
            self._whole = SessionAnswerer(self._open())
        return self._whole.generate(prompt, limit, ended)

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
