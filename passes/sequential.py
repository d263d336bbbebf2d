"""Calibration block by block: each linear is observed on what the already changed ones before it give."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from calibration.activations import InputStatistics
from calibration.walk import LayerWalk, Stream
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.pass_ import PassContext
from passes.calibrated import CalibratedPass, check_finite
from passes.linears import ChosenLinears
from passes.quantizing import QuantizingPass


@dataclass(frozen=True)
class SequentialEdit(CalibratedPass, ChosenLinears):
    """Base of passes that change a linear before the ones that read its outputs are observed."""

    observer: ClassVar[type[InputStatistics]] = InputStatistics

    @abstractmethod
    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        """Change layers that read the same input.

        Args:
            weights: [out_features, in_features] in the dtype they are stored in, by layer name; may be emptied.
            statistics: of that input, as `observer` takes them; may be used up.

        Returns:
            The new weights by parameter name.
        """

    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        prefix = block.prefix
        changed: dict[str, Weight] = {}
        for stage in walk.stages(observer=self.observer):
            names = [f"{prefix}{name}.weight" for name in stage.linears]
            read = replace(block, weights={name: block.weights[name] for name in names})
            weights = self.stored_weights(read, checkpoint)
            del read
            for name in weights:  # as they are now, they are in no other hands
                del block.weights[f"{name}.weight"]
                walk.release(name.removeprefix(prefix))
            if not weights:
                continue
            solved = self._solve(weights, stage.statistics, context)
            for name, weight in solved.items():
                walk.replace(name.removeprefix(prefix).removesuffix(".weight"), weight)
            changed |= solved
        return block.with_weights(changed)

    def edit_head(self, block: Block, stream: Stream, checkpoint: Checkpoint, context: PassContext) -> Block:
        weights = self.stored_weights(block, checkpoint)
        return block.with_weights(self._solve(weights, stream.at_head(), context)) if weights else block

    def _solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        check_finite(statistics, next(iter(weights)))
        return self.solve(weights, statistics, context)


@dataclass(frozen=True)
class SequentialPass(SequentialEdit, QuantizingPass):
    """Base of those that round."""

    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        return self.quantize(weights, statistics, context)

    @abstractmethod
    def quantize(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        """Quantize layers that read the same input; arguments and result are those of `solve`."""
