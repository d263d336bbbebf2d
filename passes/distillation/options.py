"""What passes that distil have in common: their options, the teacher, and the way from a job to a step."""

from __future__ import annotations

import json
import math
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from calibration.walk import fast_dtype
from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, MissingExtra
from compressor.files import digest_json, write_json
from compressor.options import option
from compressor.pass_ import Need, Pass, PassContext
from passes.distillation.curve import draw, read_curve
from passes.distillation.job import Job, launch, run
from passes.distillation.teacher import Lesson, record
from passes.distillation.trainer import Settings

WORK_SUFFIX = "-training"  # of the folder beside a step: states while it is trained, the curve afterwards
TEACHER, KEY = "teacher", "key.json"
WARMUP = 0.05  # of the steps
TAIL = 5  # steps that the first and the last loss are means of; fewer in a short run
MEMORY_NOTE = "training held the whole student, with its gradients and two moments, in float32"


@dataclass(frozen=True)
class DistillingPass(Pass):
    """Base of passes that train a student on what a teacher makes of the calibration text."""

    teacher: str = option("", "folder of the teacher; the run's original model unless given")
    loss: Literal["forward_kl", "reverse_kl", "jsd"] = option(
        "forward_kl", "divergence of the student's predictions from the teacher's"
    )
    temperature: float = option(1.0, "of both predictions; above 1 unlikely tokens count for more")
    hidden: float = option(0.0, "weight of the error of hidden states at four depths; 0 leaves it out")
    top_k: int = option(64, "likeliest tokens of the teacher that are kept on disk; the rest is one outcome more")
    epochs: float = option(1.0, "how often the calibration text is gone through")
    batch_size: int = option(8, "calibration windows of one update, over all processes")
    micro_batch: int = option(1, "windows that are computed at once, by each process")
    learning_rate: float | None = option(None, "the largest, after warm-up; it falls to zero as a cosine")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "matrix products; auto is bfloat16 where there are instructions for it. Weights are trained in float32"
    )
    gradient_checkpointing: bool = option(False, "compute activations again instead of keeping them: less memory")
    save_every: int = option(25, "steps between two states that a run can go on from; they are on disk until it ends")
    processes: int = option(0, "of accelerate; 0 is one for each GPU, or one")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION, Need.ORIGINAL})

    @property
    def key(self) -> str:
        if not self.teacher:
            return self.spelled()
        return f"{self.spelled()} {Checkpoint.open(Path(self.teacher)).digest}"

    @property
    def working_dtype(self) -> torch.dtype:
        """Of the matrix products."""
        if self.precision != "auto":
            return getattr(torch, self.precision)
        return torch.bfloat16 if torch.cuda.is_available() else fast_dtype()

    @property
    @abstractmethod
    def default_rate(self) -> float:
        """The learning rate where none was given."""

    def check_options(self) -> None:
        """Refuse numbers that cannot be meant.

        Raises:
            InputError: naming the first one.
            MissingExtra: accelerate is not installed.
        """
        if find_spec("accelerate") is None:
            raise MissingExtra("accelerate", "distill", f"The pass {self.name}")
        positive = ("temperature", "top_k", "epochs", "batch_size", "micro_batch", "save_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} is not above 0.", f"Leave {name} out for its default.")
        if self.hidden < 0 or self.processes < 0:
            raise InputError("hidden and processes are at least 0.", "Leave them out for their defaults.")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate={self.learning_rate} is outside (0, 1).", "Leave it out for its default.")
        if self.batch_size % self._processes:
            raise InputError(
                f"batch_size={self.batch_size} cannot be shared out to {self._processes} processes.",
                f"batch_size={self._processes * math.ceil(self.batch_size / self._processes)} can.",
            )

    def check_pair(self, teacher: Checkpoint, student: Architecture) -> None:
        """Refuse a student that cannot learn from this teacher.

        Raises:
            InputError: saying why.
        """
        theirs = teacher.architecture
        if teacher.schemes:
            raise InputError("The teacher is quantized.", "Take the float model that it was made from.")
        if student.vocab_size != theirs.vocab_size:
            raise InputError(
                f"The student has {student.vocab_size} tokens and the teacher {theirs.vocab_size}; their predictions "
                "cannot be compared.",
                "Take a teacher with the student's tokenizer.",
            )
        if student.parameters > theirs.parameters:
            raise InputError(
                f"The student has {student.parameters:,} parameters, more than the teacher's {theirs.parameters:,}.",
                "A teacher is at least as large; prune the student first, or swap them.",
            )
        if self.hidden and student.hidden_size != theirs.hidden_size:
            raise InputError(
                f"Hidden states of width {student.hidden_size} cannot be compared with the teacher's "
                f"{theirs.hidden_size}.",
                "hidden=0 compares predictions only.",
            )

    def teacher_of(self, original: Checkpoint | None) -> Checkpoint:
        """The teacher: the folder that was given, or the run's original."""
        if self.teacher:
            return Checkpoint.open(Path(self.teacher).expanduser())
        assert original is not None  # `needs` says so
        return original

    # ---- one training

    def folder_for(self, context: PassContext) -> Path:
        """Where states and the curve go; what another input or other options left there is removed."""
        folder, key = context.out.with_name(context.out.name + WORK_SUFFIX), {"key": digest_json(context.provenance)}
        if folder.exists() and not ((folder / KEY).exists() and _read(folder / KEY) == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / KEY, key)
        return folder

    def teach(self, context: PassContext, folder: Path) -> Path:
        """Let the teacher read the calibration text; the folder of what it made of it."""
        assert context.tokens is not None  # `needs` says so
        # It runs on the CPU, wherever the student is trained.
        products = fast_dtype() if self.precision == "auto" else self.working_dtype
        lesson = Lesson(self.top_k, self.temperature, self.hidden > 0, products)
        record(self.teacher_of(context.original), context.tokens, lesson, folder / TEACHER, context.progress)
        return folder / TEACHER

    def settings(self, samples: int, seed: int) -> Settings:
        """The options as the trainer takes them, for so many calibration windows."""
        batch_size = min(self.batch_size, samples) // self._processes * self._processes
        if not batch_size:
            raise InputError(
                f"{samples} calibration windows cannot be shared out to {self._processes} processes.",
                f"--samples {self.batch_size} gives each of them its share.",
            )
        steps = math.ceil(self.epochs * samples / batch_size)
        return Settings(
            loss=self.loss,
            temperature=self.temperature,
            hidden=self.hidden,
            steps=steps,
            batch_size=batch_size,
            micro_batch=self.micro_batch,
            learning_rate=self.learning_rate or self.default_rate,
            warmup=max(1, round(WARMUP * steps)),
            mixed="no" if self.working_dtype == torch.float32 else "bf16",
            checkpointing=self.gradient_checkpointing,
            save_every=self.save_every,
            seed=seed,
        )

    def train(self, job: Job, context: PassContext) -> None:
        """Run the job where it runs fastest, and leave the curve beside the step."""

        def report(done: int, total: int) -> None:
            context.progress(self.name, done, total)

        if self._processes == 1:
            run(job, report)
        else:
            launch(job, self._processes, report)
        losses = read_curve(job.folder)
        context.losses.extend(losses)
        context.notes.extend(self._notes(job, losses))
        for path in job.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def _notes(self, job: Job, losses: list[float]) -> list[str]:
        drawn = draw(job.folder, losses, self.spelled(), self._unit)
        few = max(1, min(TAIL, len(losses) // 2))
        first, last = _mean(losses[:few]), _mean(losses[-few:])
        what = f"{len(losses)} steps of {job.settings.batch_size} windows; the loss went from {first:.4g} to {last:.4g}"
        undrawn = "; matplotlib, which draws it, is not installed"
        where = f"{job.folder.name}/losses.csv" + (" and losses.png" if drawn else undrawn)
        elsewhere = f", in each of {self._processes} processes, whose memory is not in this row"
        return [f"{what} ({where})", MEMORY_NOTE + (elsewhere if self._processes > 1 else "")]

    @property
    def _unit(self) -> str:
        return f"{self.loss} in nats" + (" and the error of hidden states" if self.hidden else "")

    @property
    def _processes(self) -> int:
        return self.processes or max(1, torch.cuda.device_count())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
