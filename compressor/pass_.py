"""What a pass is: a frozen dataclass whose fields are its options, that turns one checkpoint into another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.quantized import Scheme

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, out of how many


class Need(Enum):
    """What a pass wants beside the checkpoint; asked for before any work starts."""

    CALIBRATION = "calibration"


def option(default: Any, help: str) -> Any:
    """A dataclass field that is an option of a pass, with the text that listings show."""
    return field(default=default, metadata={"help": help})


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
    """

    out: Path
    provenance: Mapping[str, Any]
    tokens: torch.Tensor | None
    seed: int
    progress: Progress
    notes: list[str]


class Pass(ABC):
    """One transformation of a checkpoint. Subclasses are frozen dataclasses.

    Options, command-line spelling (`name:key=value`), recipe keys and listings all come from the fields.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        """The schemes the model's linears will have after this pass, given those before it.

        Asked before any work, so that a target can refuse what it cannot take.

        Raises:
            InputError: the options do not fit this model.
        """
        return dict(schemes)

    @abstractmethod
    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        """Make the new checkpoint in `context.out` and return it."""

    def options(self) -> dict[str, Any]:
        """Every option with its value, defaults written out."""
        return asdict(self)  # type: ignore[call-overload]

    def spelled(self) -> str:
        """The command-line spelling that makes this very pass; defaults are left out."""
        changed = [f"{f.name}={_spell(getattr(self, f.name))}" for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return self.name + (":" + ",".join(changed) if changed else "")


class BlockPass(Pass):
    """A pass that looks at one block at a time; streaming comes for free."""

    @abstractmethod
    def edit(self, block: Block, context: PassContext) -> Block:
        """The new block."""

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        total = len(checkpoint.block_names)
        done = 0

        def edit(block: Block) -> Block:
            nonlocal done
            context.progress(self.name, done, total)
            done += 1
            return self.edit(block, context)

        edited = checkpoint.rewrite(context.out, edit, context.provenance)
        context.progress(self.name, total, total)
        return edited


def describe_options(kind: type[Pass]) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, help) of every option of a pass, for listings."""
    return [
        (f.name, str(f.type), None if f.default is MISSING else f.default, f.metadata.get("help", ""))
        for f in fields(kind)  # type: ignore[arg-type]
    ]


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(value) if isinstance(value, tuple) else str(value)
