"""The training loop: accelerate underneath, so that the same job runs as one process here and as many elsewhere.

What is drawn, the rate and the order of windows depend on the step alone, so that a run goes on from a kept state
with the very losses of an undisturbed one.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.errors import RunError
from compressor.files import sync, sync_folder, write_json
from passes.distillation.curve import Curve
from passes.distillation.losses import Divergence, Likeliest, divergence, hidden_error
from passes.distillation.student import Student
from passes.distillation.teacher import Teacher, points
from passes.tune import draw_samples

STATE, LOSSES = "state-", "losses.json"
LARGEST_GRADIENT = 1.0  # norm, of all parameters together


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        loss, temperature: see `losses.divergence`.
        hidden: what the error of hidden states is multiplied by; 0 leaves it out.
        steps: updates of the weights.
        batch_size: windows of one update, over all processes.
        micro_batch: windows that are computed at once, by a process.
        learning_rate: the largest; reached after `warmup` steps, and falling to zero as a cosine.
        mixed: accelerate's `mixed_precision`: "no" or "bf16".
        checkpointing: compute activations again instead of keeping them.
        save_every: steps between two kept states.
        seed: of the order of windows.
    """

    loss: Divergence
    temperature: float
    hidden: float
    steps: int
    batch_size: int
    micro_batch: int
    learning_rate: float
    warmup: int
    mixed: str
    checkpointing: bool
    save_every: int
    seed: int

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class DivergedError(RunError):
    """A loss or a gradient was not finite."""


Report = Callable[[int, int], None]  # steps done, of how many


class Trainer:
    """Trains a student on what a teacher made of a text; states and the curve are kept in `folder`."""

    def __init__(self, student: Student, teacher: Teacher, settings: Settings, folder: Path) -> None:
        from accelerate import Accelerator

        _forget_accelerator()
        logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns of every tied weight, at every state
        self._settings, self._teacher, self._folder = settings, teacher, folder
        self._accelerator = Accelerator(mixed_precision=settings.mixed)
        if settings.checkpointing:
            student.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._points = points(student.model.config.num_hidden_layers)
        self._trained = [one for one in student.model.parameters() if one.requires_grad]
        self._model, self._optimizer = self._accelerator.prepare(student.model, student.optimizer())
        self.losses: list[float] = []

    def train(self, report: Report) -> None:
        """Go on from the last kept state, or start.

        Raises:
            RunError: a loss or a gradient is not finite; the last state whose loss was is kept.
        """
        self.resume()
        settings = self._settings
        draws = draw_samples(len(self._teacher.tokens), settings.steps, settings.batch_size, settings.seed)
        started = len(self.losses)
        curve = Curve(self._folder, self.losses) if self.is_main else None
        for step in range(started, settings.steps):
            loss = self._accumulate(draws[step])
            norm = float(self._accelerator.clip_grad_norm_(self._trained, LARGEST_GRADIENT))
            self._check(loss, norm, step)
            # Before the update, when the weights are known to give a finite loss.
            if step > started and step % settings.save_every == 0:
                self._save()
            for group in self._optimizer.param_groups:
                group["lr"] = settings.rate(step)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.losses.append(loss)
            if curve is not None:
                curve.add(loss)
            report(step + 1, settings.steps)
        self._accelerator.wait_for_everyone()

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self._accelerator.is_main_process)

    def _accumulate(self, samples: torch.Tensor) -> float:
        """Gradients of one update; returns its loss, over all processes."""
        accelerator = self._accelerator
        share = samples[accelerator.process_index :: accelerator.num_processes]
        total = torch.zeros((), device=accelerator.device)
        parts = share.split(self._settings.micro_batch)
        for number, part in enumerate(parts):
            with accelerator.no_sync(self._model) if number < len(parts) - 1 else nullcontext():
                loss = self._loss(part) * (len(part) / len(share))
                accelerator.backward(loss)
            total += loss.detach()
        return float(accelerator.reduce(total, "mean"))

    def _loss(self, samples: torch.Tensor) -> torch.Tensor:
        device, settings = self._accelerator.device, self._settings
        told = self._teacher.likeliest(samples)
        told = Likeliest(told.indices.to(device), told.log_probabilities.to(device))
        tokens = self._teacher.tokens[samples].to(device)
        output = self._model(tokens, use_cache=False, output_hidden_states=settings.hidden > 0)
        loss = divergence(output.logits, told, settings.loss, settings.temperature).mean()
        if settings.hidden > 0:
            wanted = self._teacher.hidden(samples)
            assert wanted is not None  # the lesson has them
            # What layer n leaves is hidden state n + 1; the last is behind the final norm.
            pairs = [(output.hidden_states[after + 1], one) for after, one in zip(self._points, wanted, strict=True)]
            errors = [hidden_error(states, one.to(device)) for states, one in pairs]
            loss = loss + settings.hidden * torch.stack(errors).mean()
        return loss

    def _check(self, loss: float, norm: float, step: int) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "loss" if not math.isfinite(loss) else "gradient"
        raise DivergedError(f"The {what} of step {step + 1} is not a number; training stopped.", "Lower learning_rate.")

    # ---- states

    def resume(self) -> bool:
        """Go back to the last kept state; False where there is none."""
        states = kept_states(self._folder)
        if not states:
            return False
        self._accelerator.load_state(str(states[-1]))
        self.losses = json.loads((states[-1] / LOSSES).read_text(encoding="utf-8"))
        return True

    def _save(self) -> None:
        """Keep a state of the steps so far; it appears whole, and the one before goes only then."""
        accelerator, target = self._accelerator, self._folder / f"{STATE}{len(self.losses):07}"
        partial = target.with_name(f".{target.name}")
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        if self.is_main:
            write_json(partial / LOSSES, self.losses)
        accelerator.wait_for_everyone()
        if self.is_main:
            before = kept_states(self._folder)
            sync_folder(partial)
            partial.rename(target)
            sync(self._folder)
            for state in before:
                shutil.rmtree(state)


def kept_states(folder: Path) -> list[Path]:
    """Folders of states, oldest first."""
    return sorted(folder.glob(f"{STATE}*"))


def _forget_accelerator() -> None:
    """accelerate keeps one state a process, which refuses another precision than the first job had."""
    from accelerate.state import AcceleratorState, PartialState

    if not PartialState().use_distributed:
        AcceleratorState._reset_state(reset_partial_state=True)
