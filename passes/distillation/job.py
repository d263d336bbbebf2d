"""One training job: a value that a process of accelerate can be started with, here or on many devices.

    accelerate launch --num_processes N -m passes.distillation.job JOB.json

is what a pass runs where there is more than one device; with one, it calls `run` itself.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import LlmcError, RunError
from compressor.files import json_text, write_json
from compressor.interpreter import safe_environment
from passes.distillation.curve import read_curve
from passes.distillation.quantizer import QuantizedStudent
from passes.distillation.student import FullStudent, LoraStudent, Student, write
from passes.distillation.teacher import Teacher
from passes.distillation.trainer import DivergedError, Report, Settings, Trainer

JOB, PROBLEM, LOG, LAST_GOOD = "job.json", "problem.json", "log.txt", "last-good"
LOOK_S = 0.5  # between two looks at how far the processes are


@dataclass(frozen=True)
class Job:
    """What is trained on what, and where it goes.

    Attributes:
        student: folder of the checkpoint that is trained.
        start: folder of its quantized weights, whose rounding is trained then and nothing else; None trains floats.
        teacher: folder of what the teacher made of the text.
        folder: for states and the curve.
        out: folder of the trained checkpoint, which must not exist.
        provenance: of that checkpoint.
        lora_rank: 0 trains every parameter.
        dtype: what trained weights are rounded to; None is what each is stored in.
    """

    student: Path
    start: Path | None
    teacher: Path
    folder: Path
    out: Path
    provenance: Mapping[str, Any]
    lora_rank: int
    dtype: str | None
    settings: Settings

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """`dtype` as torch has it."""
        return None if self.dtype is None else getattr(torch, self.dtype)

    def build(self) -> Student:
        """The student, in memory."""
        checkpoint = Checkpoint.open(self.student)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            if self.start is not None:
                return QuantizedStudent(checkpoint, Checkpoint.open(self.start))
            if self.lora_rank:
                return LoraStudent(checkpoint, self.lora_rank)
            return FullStudent(checkpoint)


def run(job: Job, report: Report) -> None:
    """Train in this process, which may be one of several, and write the trained checkpoint.

    Raises:
        RunError: a loss is not finite. What the last kept state is worth stays in the folder `last-good`.
    """
    checkpoint, student = Checkpoint.open(job.student), job.build()
    trainer = Trainer(student, Teacher(job.teacher), job.settings, job.folder)
    try:
        trainer.train(report)
    except DivergedError as error:
        raise _rescued(job, trainer, student, checkpoint, error) from error
    if trainer.is_main:
        write(student, checkpoint, job.out, job.provenance, job.stored_dtype)


def _rescued(
    job: Job, trainer: Trainer, student: Student, checkpoint: Checkpoint, error: DivergedError
) -> DivergedError:
    """The error, told with what is left: the last kept state as an ordinary checkpoint."""
    if not trainer.resume():
        return DivergedError(f"{error} No step before it was kept.", error.hint)
    good = job.folder / LAST_GOOD
    if trainer.is_main:
        shutil.rmtree(good, ignore_errors=True)
        write(student, checkpoint, good, {**job.provenance, "steps": len(trainer.losses)}, job.stored_dtype)
    return DivergedError(f"{error} The model after step {len(trainer.losses)} is kept in {good}.", error.hint)


def launch(job: Job, processes: int, report: Report) -> None:
    """Train in so many processes, one a device, or on CPUs where there are no devices.

    Raises:
        RunError: one of them ended with an error.
    """
    write_json(job.folder / JOB, dataclasses.asdict(job) | _paths(job))
    (job.folder / PROBLEM).unlink(missing_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", job.settings.mixed, "--dynamo_backend", "no"]
    command += ["--multi_gpu"] if torch.cuda.device_count() >= processes else ["--cpu"]
    command += ["-m", "passes.distillation.job", str(job.folder / JOB)]
    with (job.folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=safe_environment())
    try:
        while process.poll() is None:
            report(len(read_curve(job.folder)), job.settings.steps)
            time.sleep(LOOK_S)
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        raise _problem(job.folder)


def _problem(folder: Path) -> RunError:
    if (folder / PROBLEM).exists():
        return RunError(*json.loads((folder / PROBLEM).read_text(encoding="utf-8")))
    return RunError(f"A training process ended with an error; its log is {folder / LOG}.")


def _paths(job: Job) -> dict[str, str | None]:
    paths = {name: getattr(job, name) for name in ("student", "start", "teacher", "folder", "out")}
    return {name: path and str(path) for name, path in paths.items()}


def main(path: str) -> int:
    """What each of several processes does."""
    from pydantic import TypeAdapter

    job = TypeAdapter(Job).validate_json(Path(path).read_bytes())
    try:
        run(job, lambda done, total: None)
    except LlmcError as error:
        (job.folder / PROBLEM).write_text(json_text([str(error), error.hint]), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
