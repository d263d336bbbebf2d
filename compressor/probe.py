"""A short greedy generation with its logits: recorded where an artifact is made, compared where it is verified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

from compressor.architecture import Architecture
from compressor.errors import RunError
from compressor.files import folder_bytes
from compressor.measure.continuations import greedy
from compressor.measure.torch_session import MEMORY_SHARE
from compressor.target import Artifact, Session, Target, Tolerance

TOKENS = 16  # of the prompt, and of the generation
LARGEST = 8  # logits kept of each position
DECIMALS = 5


@dataclass(frozen=True)
class Position:
    """What is kept of the logits [vocab_size] that a token was chosen by.

    Attributes:
        tokens: ids of the largest logits, in descending order.
        logits: their values.
        normalizer: logarithm of the sum of the exponentials of all logits, so that each has its part.
    """

    tokens: list[int]
    logits: list[float]
    normalizer: float

    @classmethod
    def of(cls, logits: np.ndarray) -> Position:
        tokens = np.argsort(-logits, kind="stable")[:LARGEST]
        values = [round(float(logits[token]), DECIMALS) for token in tokens]
        return cls(tokens.tolist(), values, round(_normalizer(logits), DECIMALS))

    def distance(self, logits: np.ndarray) -> float:
        """The largest difference between what is kept and the same of other logits; NaN where these hold one."""
        kept = np.array([*self.logits, self.normalizer])
        return float(np.abs(np.array([*logits[self.tokens], _normalizer(logits)]) - kept).max())

    def is_tie(self, chosen: int, other: int, tolerance: float) -> bool:
        """Whether either of two tokens may be the most likely one, when each logit may move by the tolerance."""
        known = dict(zip(self.tokens, self.logits, strict=True))
        lower = min(known.get(token, self.logits[-1]) for token in (chosen, other))
        return lower >= self.logits[0] - 2 * tolerance


@dataclass(frozen=True)
class Probe:
    """A prompt of token ids, what followed it in the runtime of this name, and the logits of each token of that."""

    runtime: str
    prompt: list[int]
    continuation: list[int]
    positions: list[Position]
    tolerance: Tolerance

    @property
    def is_finite(self) -> bool:
        """Whether logits are numbers: one NaN or infinity among them, and their sum of exponentials is none."""
        return all(math.isfinite(position.normalizer) for position in self.positions)


@dataclass(frozen=True)
class Comparison:
    """How a probe went elsewhere: differences beyond the tolerance, and what is only worth saying."""

    differences: list[str]
    remarks: list[str]
    distance: float


def open_session(target: Target, artifact: Artifact) -> Session:
    """The artifact in its runtime.

    Raises:
        RunError: the runtime is not here, or the artifact does not fit in the memory that is free.
    """
    reason = target.why_not_run()
    if reason is not None:
        raise RunError(reason)
    needed, free = folder_bytes(artifact.root), psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise RunError(f"the artifact has {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free")
    return target.open(artifact)


def record(session: Session, architecture: Architecture, tolerance: Tolerance) -> Probe:
    """Generate from a prompt whose tokens are spread evenly over the vocabulary, which asks for no tokenizer."""
    length = min(TOKENS, architecture.max_positions // 2)
    prompt = [(2 * index + 1) * architecture.vocab_size // (2 * length) for index in range(length)]
    continuation = _generate(session, prompt, length)
    positions = [Position.of(logits) for logits in _logits(session, prompt, continuation)]
    return Probe(session.runtime, prompt, continuation, positions, tolerance)


def compare(probe: Probe, session: Session) -> Comparison:
    """Run a recorded probe again: the generation, and the logits along the recorded tokens."""
    differences, remarks = _compare_tokens(probe, _generate(session, probe.prompt, len(probe.continuation)))
    logits = _logits(session, probe.prompt, probe.continuation)
    distances = [position.distance(row) for position, row in zip(probe.positions, logits, strict=True)]
    limit = probe.tolerance.logits
    beyond = [index for index, distance in enumerate(distances) if not distance <= limit]  # NaN is beyond too
    if beyond:
        differences.append(
            f"the logits of token {beyond[0] + 1} are {distances[beyond[0]]:.3g} from the recorded ones, "
            f"which is more than the tolerance of {limit:g} ({probe.tolerance.reason})"
        )
    if session.runtime != probe.runtime:
        remarks.insert(0, f"recorded in {probe.runtime}, run here in {session.runtime}")
    return Comparison(differences, remarks, float(np.max(distances)))


def _compare_tokens(probe: Probe, found: list[int]) -> tuple[list[str], list[str]]:
    """Differences and remarks; behind the first token that is another one, nothing compares."""
    pairs = zip(probe.continuation, found, probe.positions, strict=True)
    for number, (recorded, token, position) in enumerate(pairs, start=1):
        if token == recorded:
            continue
        if position.is_tie(recorded, token, probe.tolerance.logits):
            return [], [f"token {number} is {token} and not {recorded}: both are equally likely within the tolerance"]
        return [f"token {number} of the greedy generation is {token}, and {recorded} was recorded"], []
    return [], []


def _generate(session: Session, prompt: list[int], length: int) -> list[int]:
    return greedy(session, np.array([prompt], np.int64), length)


def _logits(session: Session, prompt: list[int], continuation: list[int]) -> Iterator[np.ndarray]:
    """float32 [vocab_size] of each position that a token of the continuation was chosen at."""
    first = len(prompt) - 1
    for start, logits in session.logits(np.array(prompt + continuation[:-1], np.int64)):
        yield from logits[max(0, first - start) :]


def _normalizer(logits: np.ndarray) -> float:
    largest = float(logits.max())
    with np.errstate(invalid="ignore"):
        return largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))
