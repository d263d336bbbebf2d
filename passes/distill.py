"""Distillation: a smaller student is trained to predict what the teacher predicts on the calibration text.

Papers: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Muralidharan et al., "Compact Language
Models via Pruning and Knowledge Distillation", 2024 (Minitron), for students that were pruned out of their teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, MissingExtra
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.distillation.job import Job
from passes.distillation.options import DistillingPass
from passes.refusals import refuse_quantized

FULL_RATE, LORA_RATE = 2e-4, 1e-3


@dataclass(frozen=True)
class Distill(DistillingPass):
    """Train the model at this point of the run, or a given smaller one, towards the original."""

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = (
        "distillation (arXiv 1503.02531): train a smaller model towards the original; needs calibration text"
    )
    zeros: ClassVar[Literal["makes", "keeps", "fills"]] = "fills"

    student: str = option("", "folder of a smaller model; the one at this point of the run unless given")
    lora_rank: int = option(0, "train low-rank changes of this rank, merged in the end; 0 trains every weight")
    dtype: Literal["auto", "float32"] = option("auto", "auto rounds to what the checkpoint has; float32 does not round")

    @property
    def key(self) -> str:
        return super().key + (f" {self._student.digest}" if self._student else "")

    @property
    def default_rate(self) -> float:
        return LORA_RATE if self.lora_rank else FULL_RATE

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        refuse_quantized(
            schemes,
            ", which training would undo",
            "Distil first and quantize what comes of it, or train through the quantizer with the pass qat.",
        )
        self.check_options()
        if self.lora_rank < 0:
            raise InputError(f"lora_rank={self.lora_rank} is less than 0.", "0 trains every weight.")
        if self.lora_rank and find_spec("peft") is None:
            raise MissingExtra("peft", "distill", "lora_rank")
        if self.teacher:
            self.check_pair(self.teacher_of(None), self.reshaped(architecture))
        return {}

    def check(self, original: Checkpoint) -> None:
        if self._student is not None:
            self.check_pair(self.teacher_of(original), self._student.architecture)
            check_same_tokens(self.teacher_of(original), self._student)

    def reshaped(self, architecture: Architecture) -> Architecture:
        return architecture if self._student is None else self._student.architecture

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        student = self._student or checkpoint
        self.check_pair(self.teacher_of(context.original), student.architecture)
        assert context.tokens is not None  # `needs` says so
        folder = self.folder_for(context)
        job = Job(
            student=student.root,
            start=None,
            teacher=self.teach(context, folder),
            folder=folder,
            out=context.out,
            provenance=context.provenance,
            lora_rank=self.lora_rank,
            dtype=None if self.dtype == "auto" else self.dtype,
            settings=self.settings(len(context.tokens), context.seed),
        )
        self.train(job, context)
        return Checkpoint.open(context.out)

    @cached_property
    def _student(self) -> Checkpoint | None:
        if not self.student:
            return None
        found = Checkpoint.open(Path(self.student).expanduser())
        if found.schemes:
            raise InputError(f"The student {self.student} is quantized.", "Take the float model that it was made from.")
        return found


def check_same_tokens(teacher: Checkpoint, student: Checkpoint) -> None:
    """Refuse two tokenizers that number their tokens differently.

    Raises:
        InputError: naming the first token.
    """
    from compressor.tokenizer import tokenizer_of

    theirs, ours = (tokenizer_of(one).get_vocab() for one in (teacher, student))
    other = next((token for token, number in theirs.items() if ours.get(token) != number), None)
    other = other or next((token for token in ours if token not in theirs), None)
    if other is not None:
        raise InputError(
            f"The student's tokenizer is another one than the teacher's: {other!r} is token {ours.get(other)} of the "
            f"student and {theirs.get(other)} of the teacher.",
            "Take a student with the teacher's tokenizer.",
        )
