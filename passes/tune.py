"""Learned rounding: a block's weights are rounded so that the block gives what it gave in the original model.

Paper: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", 2023
(AutoRound); `passes.learned_grid` says what is learned, and where it departs from the paper. A block reads what the
rounded blocks before it give and is trained towards what the original model has in its place. What is learned is kept
only where it beats its start on all of the calibration text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from calibration.activations import InputStatistics
from calibration.walk import Stream
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import Decoder, batches
from compressor.errors import InputError, RunError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from passes.gptq import GPTQ
from passes.grid import fit_grid, quantize
from passes.learned_grid import LearnedWeight
from passes.sequential import SequentialPass


def draw_samples(samples: int, steps: int, batch_size: int, seed: int) -> torch.Tensor:
    """Numbers of samples, int64 [steps, batch_size]: all of them in random order, again and again."""
    batch_size = min(batch_size, samples)
    generator = torch.Generator().manual_seed(seed)
    rounds = math.ceil(steps * batch_size / samples)
    order = torch.cat([torch.randperm(samples, generator=generator) for _ in range(rounds)])
    return order[: steps * batch_size].view(steps, batch_size)


def mean_squared_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of hidden states [samples, length, hidden_size], summed up in float64 a batch at a time."""
    pairs = zip(batches(found), batches(wanted), strict=True)
    return sum(float((a - b).square_().sum(dtype=torch.float64)) for a, b in pairs) / found.numel()


def error_left(block: Block, start: torch.Tensor, learned: torch.Tensor, targets: torch.Tensor) -> float:
    """The share of the start's mean squared error that the learned outputs of `block` have; 1 where it is no less.

    Raises:
        RunError: an error is not a number.
    """
    before, after = mean_squared_error(start, targets), mean_squared_error(learned, targets)
    check_finite_loss(before + after, block.index)
    return after / before if after < before else 1.0


def check_finite_loss(loss: float, index: int | None) -> None:
    """Refuse a loss that is not a number.

    Raises:
        RunError: naming the decoder block.
    """
    if not math.isfinite(loss):
        raise RunError(
            f"The outputs of layers.{index} hold NaN or Inf on the calibration text.",
            "The model overflows on it.",
        )


def summary(shares: list[float]) -> list[str]:
    """A note for the ledger on what learning left of the error of each block's outputs."""
    if not shares:
        return []
    mean = math.exp(sum(map(math.log, shares)) / len(shares))
    unmoved = sum(share == 1 for share in shares)
    note = f"learning left {mean:.0%} of the squared error of blocks' outputs ({min(shares):.0%} to {max(shares):.0%})"
    return [note + (f"; {unmoved} blocks stay as they started" if unmoved else "")]


def products_in(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Matrix products in `dtype`; the residual stream and the norms stay in float32."""
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


class LearnedLayer:
    """A decoder layer whose quantized linears are being learned: `weights`, by parameter name.

    Args:
        original: the block with its float weights.
        start: the same block with the codes to start from.
        dtype: of the matrix products.
    """

    def __init__(self, decoder: Decoder, original: Block, start: Block, dtype: torch.dtype) -> None:
        assert original.index is not None
        self.index = original.index
        self.weights = dict(_learned_weights(original, start, dtype))
        self._decoder, self._dtype = decoder, dtype
        self._layer = decoder.layer(start).requires_grad_(False)
        for name, weight in self.weights.items():
            linear = name.removeprefix(original.prefix).removesuffix(".weight")
            self._layer.get_submodule(linear).weight = weight.values

    def step(self, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> None:
        """One step of descent towards outputs that equal `targets`, float32 [samples, length, hidden_size]."""
        context = self._decoder.context(self.index, inputs.shape[1])
        with products_in(self._dtype):
            outputs = self._layer(inputs, **context)
        loss = nn.functional.mse_loss(outputs, targets)
        check_finite_loss(loss.item(), self.index)
        loss.backward()
        for weight in self.weights.values():
            weight.step(rate)

    def run(self, hidden: torch.Tensor) -> None:
        """Replace `hidden` [samples, length, hidden_size] by what the layer now makes of it."""
        with products_in(self._dtype):
            self._decoder.run(self._layer, self.index, hidden)

    def quantized(self) -> dict[str, Weight]:
        """The learned weights as they would be stored now, by parameter name."""
        return {name: weight.quantized() for name, weight in self.weights.items()}


def _learned_weights(original: Block, start: Block, dtype: torch.dtype) -> Iterator[tuple[str, LearnedWeight]]:
    for name, rounded in start.weights.items():
        weight = original.weights[name]
        if isinstance(rounded, QuantizedWeight) and isinstance(weight, torch.Tensor):
            yield name, LearnedWeight(rounded, weight.float(), dtype)


@dataclass(frozen=True)
class Tune(SequentialPass):
    """Learned rounding, block by block, from where GPTQ or rounding to nearest leaves each block."""

    name: ClassVar[str] = "tune"
    summary: ClassVar[str] = (
        "AutoRound (arXiv 2309.05516): learn rounding block by block, by gradients; slow; needs calibration text"
    )

    start: Literal["gptq", "nearest"] = option("gptq", "what each block starts from; an lm_head is left there")
    iterations: int = option(200, "steps of descent for each block")
    batch_size: int = option(8, "calibration samples in a step; all of them where there are fewer")
    learning_rate: float | None = option(
        None, "of the first update, in steps of the grid, falling to zero; 0.5 / iterations unless given"
    )

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is less than 1.", f"Leave {name} out for its default.")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise InputError(f"learning_rate={self.learning_rate} is outside (0, 1].", "Leave it out for its default.")
        return super().plan(architecture, schemes)

    def quantize(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        """What linears start from."""
        if self.start == "gptq":
            options = {field.name: getattr(self, field.name) for field in fields(SequentialPass)}
            return GPTQ(**options).quantize(weights, statistics, context)
        importance = statistics.moments.diagonal()
        return {f"{name}.weight": self._nearest(name, weight.float(), importance) for name, weight in weights.items()}

    def _nearest(self, name: str, weight: torch.Tensor, importance: torch.Tensor) -> QuantizedWeight:
        scheme = self.scheme_of(name)
        return quantize(weight, scheme, fit_grid(weight, scheme, importance, search=True))

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        assert context.tokens is not None  # `needs` says so
        decoder, dtype = Decoder(checkpoint), self.working_dtype
        stream = Stream(decoder, context.tokens, dtype, len(context.tokens), context.out.parent)
        shares: list[float] = []

        def edit(block: Block) -> Block:
            if block.name == "embedding":
                return block
            if block.index is None:
                return self.edit_head(block, stream, checkpoint, context)
            inputs = stream.hidden.clone()
            emptied = replace(block, weights=dict(block.weights))
            start = self.edit_layer(emptied, stream.enter(block), checkpoint, context)
            layer = LearnedLayer(decoder, block, start, dtype)
            if not layer.weights:
                return start
            self._descend(layer, inputs, stream.original, checkpoint.architecture.layers, context)
            layer.run(inputs)
            shares.append(error_left(block, stream.hidden, inputs, stream.original))
            if shares[-1] == 1:
                return start
            stream.hidden = inputs
            return start.with_weights(layer.quantized())

        result = checkpoint.rewrite(context.out, edit, context.provenance)
        context.notes.extend(summary(shares))
        return result

    def _descend(
        self, layer: LearnedLayer, inputs: torch.Tensor, targets: torch.Tensor, layers: int, context: PassContext
    ) -> None:
        rate = self.learning_rate or 0.5 / self.iterations
        draws = draw_samples(len(inputs), self.iterations, self.batch_size, context.seed)
        for step, samples in enumerate(draws):
            layer.step(inputs[samples], targets[samples], rate * (1 - step / self.iterations))
            context.progress(self.name, layer.index * self.iterations + step + 1, layers * self.iterations)
