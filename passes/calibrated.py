"""Passes that walk the model on calibration text, one block in memory at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from calibration.activations import InputStatistics
from calibration.walk import LayerWalk, Stream, fast_dtype
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.decoder import Decoder
from compressor.errors import RunError
from compressor.options import option
from compressor.pass_ import Need, Pass, PassContext


@dataclass(frozen=True)
class CalibrationOptions(Pass):
    """Base of passes that need calibration text. Its field says how they compute on it."""

    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "matrix products on calibration text; auto is bfloat16 where the CPU has instructions for it"
    )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION})

    @property
    def working_dtype(self) -> torch.dtype:
        """Of the matrix products on calibration text."""
        return fast_dtype() if self.precision == "auto" else getattr(torch, self.precision)


@dataclass(frozen=True)
class CalibratedPass(CalibrationOptions):
    """Base of passes that look at what each linear reads on calibration text."""

    @abstractmethod
    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        """The new decoder block; every stage of `walk` has been gone through when this returns."""

    def edit_head(self, block: Block, stream: Stream, checkpoint: Checkpoint, context: PassContext) -> Block:
        """The new head; the text has come as far as the final norm."""
        return block

    def enter(self, stream: Stream, block: Block, context: PassContext) -> LayerWalk:
        """The decoder layer of `block`, to be walked."""
        return stream.enter(block)

    def originals(self, samples: int) -> int:
        """How many of the calibration samples shall also be followed through the model as it was before the pass."""
        return 0

    def stored_dtype(self, architecture: Architecture) -> torch.dtype | None:
        """What float parameters are stored in; None leaves each as it is."""
        return None

    def config(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """The config.json of what it leaves; the same for most passes."""
        return checkpoint.config

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        assert context.tokens is not None  # `needs` says so
        originals = self.originals(len(context.tokens))
        stream = Stream(Decoder(checkpoint), context.tokens, self.working_dtype, originals, context.out.parent)

        def edit(block: Block) -> Block:
            if block.name == "embedding":
                return block
            if block.index is None:
                return self.edit_head(block, stream, checkpoint, context)
            edited = self.edit_layer(block, self.enter(stream, block, context), checkpoint, context)
            context.progress(self.name, block.index + 1, checkpoint.architecture.layers)
            return edited

        rewritten = replace(checkpoint, config=self.config(checkpoint))
        return rewritten.rewrite(context.out, edit, context.provenance, self.stored_dtype(checkpoint.architecture))


def check_finite(statistics: InputStatistics, linear: str) -> None:
    """Refuse statistics that nothing can be decided by.

    Raises:
        RunError: the inputs of `linear` were not all finite.
    """
    seen = [statistics.largest] if statistics.drift is None else [statistics.largest, statistics.drift.cross]
    if not all(math.isfinite(low) and math.isfinite(high) for low, high in map(torch.aminmax, seen)):
        raise RunError(f"The inputs of {linear} hold NaN or Inf on the calibration text.", "The model overflows on it.")
