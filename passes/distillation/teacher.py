"""The teacher on disk: what it makes of every position of the training text, computed once and block by block.

Training then needs neither the teacher nor its logits in memory, and a run that goes on reads the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.walk import Lane
from compressor.arrays import new_array
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, batches
from compressor.errors import RunError
from compressor.files import whole_folder
from compressor.pass_ import Progress
from passes.distillation.losses import Likeliest, likeliest

TOKENS, INDICES, LOG_PROBABILITIES, HIDDEN = "tokens", "indices", "log_probabilities", "hidden"
POSITIONS_AT_ONCE = 256  # whose logits are in memory
POINTS = 4  # depths at which hidden states are compared, evenly spread; the last is behind the final norm


@dataclass(frozen=True)
class Lesson:
    """What is kept of the teacher.

    Attributes:
        count: likeliest tokens of each position.
        temperature: of the log-probabilities.
        hidden: whether hidden states are kept too.
        products: dtype of the matrix products of decoder layers; the residual stream and the head are float32.
    """

    count: int
    temperature: float
    hidden: bool
    products: torch.dtype


def points(layers: int) -> tuple[int, ...]:
    """The layers, counted from 0, after which hidden states are compared in a model of so many layers.

    The last is the whole model. Teacher and student are matched by the share of their depth.
    """
    return tuple(max(1, round(layers * (point + 1) / POINTS)) - 1 for point in range(POINTS))


class Teacher:
    """What a teacher made of a text, read from a folder as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.tokens = torch.from_numpy(np.load(folder / f"{TOKENS}.npy"))
        self._indices = np.load(folder / f"{INDICES}.npy", mmap_mode="r")
        self._log_probabilities = np.load(folder / f"{LOG_PROBABILITIES}.npy", mmap_mode="r")
        hidden = folder / f"{HIDDEN}.npy"
        self._hidden = np.load(hidden, mmap_mode="r") if hidden.exists() else None

    def likeliest(self, samples: torch.Tensor) -> Likeliest:
        """Of some windows, by number: [samples, length, k] each."""
        rows = samples.numpy()
        return Likeliest(torch.from_numpy(self._indices[rows]).long(), torch.from_numpy(self._log_probabilities[rows]))

    def hidden(self, samples: torch.Tensor) -> torch.Tensor | None:
        """Hidden states of some windows, bfloat16 [points, samples, length, hidden_size], where they were kept."""
        if self._hidden is None:
            return None
        return torch.from_numpy(self._hidden[:, samples.numpy()]).view(torch.bfloat16)


def record(checkpoint: Checkpoint, tokens: torch.Tensor, lesson: Lesson, folder: Path, progress: Progress) -> None:
    """Run the teacher on `tokens`, int64 [samples, length], and leave `folder`, unless it is there already.

    Raises:
        RunError: its logits are not finite.
    """
    if folder.exists():
        return
    with whole_folder(folder) as out, torch.no_grad():
        np.save(out / f"{TOKENS}.npy", tokens.numpy())
        states = _final_states(checkpoint, tokens, lesson, out, progress)
        _write_logits(checkpoint, states, lesson, out, progress)


def _final_states(
    checkpoint: Checkpoint, tokens: torch.Tensor, lesson: Lesson, out: Path, progress: Progress
) -> torch.Tensor:
    """What lm_head reads, float32 [samples, length, hidden_size]."""
    decoder, layers = Decoder(checkpoint), checkpoint.architecture.layers
    hidden = decoder.embed(tokens)
    kept = _Kept(out, hidden.shape, points(layers)) if lesson.hidden else None
    for index in range(layers):
        layer = decoder.layer(checkpoint.block(f"layers.{index}"), lesson.products)
        context = decoder.context(index, tokens.shape[1])
        _advance(Lane(layer, decoder.architecture.modules, context, hidden, lesson.products))
        if index == layers - 1:
            decoder.final_norm(hidden)
        if kept is not None:
            kept.keep(index, hidden)
        progress("the teacher", index + 1, layers)
    return hidden


def _advance(lane: Lane) -> None:
    """Replace what the lane's layer reads by its outputs, a batch at a time."""
    everything = lane.hidden
    for batch in batches(everything):
        lane.hidden = batch
        for branch in lane.modules.branches:
            for _ in lane.finish(branch, lane.inner(branch, lane.read(branch))):
                pass
    lane.hidden = everything


class _Kept:
    """Hidden states on their way to the disk, as the bits of bfloat16, which numpy does not know."""

    def __init__(self, out: Path, shape: torch.Size, after: tuple[int, ...]) -> None:
        self._after = after
        self._file = _open(out, HIDDEN, np.int16, (len(after), *shape))

    def keep(self, index: int, hidden: torch.Tensor) -> None:
        for point, after in enumerate(self._after):
            if after == index:
                self._file[point] = hidden.to(torch.bfloat16).view(torch.int16).numpy()


def _write_logits(checkpoint: Checkpoint, states: torch.Tensor, lesson: Lesson, out: Path, progress: Progress) -> None:
    samples, length = states.shape[:2]
    count = min(lesson.count, checkpoint.architecture.vocab_size)
    indices = _open(out, INDICES, np.int32, (samples, length, count))
    log_probabilities = _open(out, LOG_PROBABILITIES, np.float32, (samples, length, count))
    decoder = Decoder(checkpoint)
    head = decoder.head()
    for sample in range(samples):
        for rows in torch.arange(length).split(POSITIONS_AT_ONCE):
            # In float32: bfloat16 has steps of a sixteenth at logits of sixteen.
            told = likeliest(decoder.logits(states[sample, rows], head), count, lesson.temperature)
            if not bool(told.log_probabilities.isfinite().all()):
                raise RunError("The teacher's logits hold NaN or Inf on the training text.", "It overflows on it.")
            indices[sample, rows] = told.indices.int().numpy()
            log_probabilities[sample, rows] = told.log_probabilities.numpy()
        progress("the teacher's logits", sample + 1, samples)


def _open(out: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    return new_array(out / f"{name}.npy", dtype, shape)
