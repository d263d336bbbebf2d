"""Quantization-aware distillation: the rounding of all linears is trained at once, towards the original's predictions.

Papers: Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", 2023 (distillation
through the quantizer); Cheng et al., 2023 (AutoRound), for what is trained, see `passes.learned_grid`. `tune` does the
same block by block and needs one block in memory; this needs the whole model, and sees what errors do to the outcome.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.distillation.job import Job
from passes.distillation.options import DistillingPass
from passes.gptq import GPTQ
from passes.quantizing import QuantizingPass
from passes.rtn import RTN
from passes.tune import Tune

START = "start"
STARTS: dict[str, type[QuantizingPass]] = {"nearest": RTN, "gptq": GPTQ, "tune": Tune}
RATE = 0.003  # steps of the grid: small, since the integers of all layers change at once


@dataclass(frozen=True)
class Qat(DistillingPass, QuantizingPass):
    """Train the rounding of the whole model through the quantizer, from where another pass leaves it."""

    name: ClassVar[str] = "qat"
    summary: ClassVar[str] = (
        "LLM-QAT (arXiv 2305.17888): train the rounding of all linears towards the original; slow, holds the model"
    )

    zeros: ClassVar[Literal["makes", "keeps", "fills"]] = "fills"

    start: str = option("gptq", "nearest, gptq, tune, or a folder of this model as one of them left it")

    @property
    def key(self) -> str:
        found = self._start_folder
        return super().key + (f" {found.digest}" if found else "")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        self.check_options()
        if self.lm_head is not False:
            raise InputError("qat leaves lm_head as it is.", "lm_head=false, and the pass embeddings for a tied one.")
        if self.teacher:
            self.check_pair(self.teacher_of(None), architecture)
        planned = super().plan(architecture, schemes)
        found = self._start_folder
        if found is not None and dict(found.schemes) != {**schemes, **planned}:
            raise InputError(
                f"The linears in {self.start} are not {self.scheme}.", "Give the options it was made with."
            )
        return planned

    @property
    def default_rate(self) -> float:
        return RATE

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        self.check_pair(self.teacher_of(context.original), checkpoint.architecture)
        assert context.tokens is not None  # `needs` says so
        folder = self.folder_for(context)
        job = Job(
            student=checkpoint.root,
            start=self._started(checkpoint, context, folder).root,
            teacher=self.teach(context, folder),
            folder=folder,
            out=context.out,
            provenance=context.provenance,
            lora_rank=0,
            dtype=None,
            settings=self.settings(len(context.tokens), context.seed),
        )
        self.train(job, context)
        return Checkpoint.open(context.out)

    def _started(self, checkpoint: Checkpoint, context: PassContext, folder: Path) -> Checkpoint:
        """The integers to start from, which another pass finds."""
        if self._start_folder is not None:
            return self._start_folder
        if (folder / START).exists():
            return Checkpoint.open(folder / START)
        kind = STARTS[self.start]
        common = {field.name for field in dataclasses.fields(kind)} & {field.name for field in dataclasses.fields(self)}
        one = kind(**{name: getattr(self, name) for name in common - OWN})
        return one.apply(checkpoint, dataclasses.replace(context, out=folder / START, losses=[]))

    @property
    def _start_folder(self) -> Checkpoint | None:
        if self.start in STARTS:
            return None
        path = Path(self.start).expanduser()
        if not path.is_dir():
            raise InputError(f"start={self.start} is neither {', '.join(STARTS)} nor a folder.")
        return Checkpoint.open(path)


OWN = {field.name for field in dataclasses.fields(DistillingPass)} - {"precision"} | {"start"}
