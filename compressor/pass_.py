"""What a pass is: a frozen dataclass whose fields are its options, that turns one checkpoint into another."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.engine import Engine
from compressor.options import Configurable
from compressor.quantized import Scheme

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, out of how many


class Need(Enum):
    """What a pass wants beside the checkpoint; asked for before any work starts."""

    CALIBRATION = "calibration"
    ORIGINAL = "original"  # the model that later rows are compared with
    UNROUNDED = "unrounded"  # the model as it was before its linears were rounded


@dataclass(frozen=True)
class PassContext:
    """What a run gives a pass.

    Attributes:
        out: folder the pass must make (through `Checkpoint.rewrite`).
        provenance: content of the step file, to be passed on to `rewrite`.
        tokens: calibration tokens, int64 [samples, length], or None when the pass does not need them.
        seed: for anything random.
        progress: called with (what, done, total).
        notes: facts for the ledger, filled by the pass (dead channels, damping raised, ...).
        original: what the rows of the run are compared with, or None when the pass does not need it.
        losses: of every step of a pass that trains, filled by it for the ledger.
        unrounded: the model as it was before its linears were rounded, or None when the pass does not need it.
    """

    out: Path
    provenance: Mapping[str, Any]
    tokens: torch.Tensor | None
    seed: int
    progress: Progress
    notes: list[str]
    original: Checkpoint | None = None
    losses: list[float] = field(default_factory=list)
    unrounded: Checkpoint | None = None


class Pass(Configurable, ABC):
    """One transformation of a checkpoint. Subclasses are frozen dataclasses.

    Options, command-line spelling (`name:key=value`), recipe keys and listings all come from the fields.
    """

    comes_first: ClassVar[bool] = False  # its weights fit the model as it was trained, and no other
    changes_floats: ClassVar[bool] = True  # beside those that it quantizes; so nothing is known of them before it ran
    engine: ClassVar[Engine | None] = None  # that does its work, in an environment of its own
    zeros: ClassVar[Literal["makes", "keeps", "fills"]] = "keeps"  # what it does to those in weights that were pruned

    @property
    def chooses_schemes(self) -> bool:
        """Whether it chooses schemes while it runs; its plan then shows some that a linear may get."""
        return False

    @property
    def needs(self) -> frozenset[Need]:
        """What it wants beside the checkpoint, which may depend on its options."""
        return frozenset()

    @property
    def pickles(self) -> list[str]:
        """Pickle files that it would open; refused unless the run allows them."""
        return []

    @property
    def key(self) -> str:
        """What of this pass decides the bytes of its step: its options, and the content of any file they name."""
        return self.spelled()

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        """The schemes the model's linears will have after this pass, given those before it.

        Asked before any work, so that a target can refuse what it cannot take.

        Raises:
            InputError: the options do not fit this model.
        """
        return dict(schemes)

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        """Whether the model has scales of an fp8 key-value cache after this pass, given whether it had them before.

        Asked before any work, like `plan`.

        Raises:
            InputError: they are there, and would not fit any more.
        """
        return present

    def check(self, original: Checkpoint) -> None:
        """Refuse what does not fit the run's original model; asked before any work, like `plan`.

        Raises:
            InputError: it does not fit.
        """
        return

    def fitting_defaults(self, given: Collection[str], architecture: Architecture) -> dict[str, Any]:
        """Other values for options that were not given and whose defaults do not fit a model; none for most passes.

        Args:
            given: names of the options that were, which stay as they are.

        Raises:
            InputError: the options do not fit the model.
        """
        return {}

    def reshaped(self, architecture: Architecture) -> Architecture:
        """The architecture of what it leaves; the same for most passes."""
        return architecture

    def original(self, checkpoint: Checkpoint) -> Checkpoint:
        """What later rows are compared with, seen from what it was before this pass; the same for most passes."""
        return checkpoint

    @abstractmethod
    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        """Make the new checkpoint in `context.out` and return it."""


class BlockPass(Pass):
    """A pass that looks at one block at a time; streaming and progress come for free."""

    dtype: ClassVar[torch.dtype | None] = None  # what float parameters are stored in; None leaves each as it is

    @abstractmethod
    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        """The new block. Blocks come in forward order: embedding, decoder blocks, head."""

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        total = len(checkpoint.block_names)
        counter = itertools.count(1)

        def edit(block: Block) -> Block:
            edited = self.edit(block, checkpoint, context)
            context.progress(self.name, next(counter), total)
            return edited

        return checkpoint.rewrite(context.out, edit, context.provenance, self.dtype)
