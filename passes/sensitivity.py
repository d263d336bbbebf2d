"""How much each weight's rounding error moves the model's predictions, known before anything is rounded.

To second order, giving a linear the weight W - D changes the distribution of the next tokens by the divergence
KL = 1/2 E[<D, G>^2], G the gradient of log p(labels) with respect to W, for labels drawn from the model itself: the
Fisher information. GPTQ makes D = E V, where E holds the errors of rounding one weight after the other, independent
of each other, and V is the upper Cholesky factor of the inverse second moments of the inputs, its rows divided by their
diagonal. So the divergence is the sum over weights of E^2 times 1/2 E[(G V^T)^2], which is called importance here.

Gradients are taken on other text than second moments, since GPTQ fits its errors to the text that it sees: measured on
the same text, wide layers would seem less sensitive than they are.

Cost: one forward pass of the calibration windows that give second moments, and seven of the few texts that give
gradients. Memory: a block, and hidden states of those texts for every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from calibration.moments import SecondMoments
from calibration.walk import Stream
from compressor.checkpoint import Block, Checkpoint
from compressor.decoder import Decoder
from passes.calibrated import check_finite
from passes.hessian import Hessian

# Gradients are taken on this many texts of at most this many tokens, from at most this share of the windows.
TEXTS, TEXT_LENGTH, TEXT_SHARE = 16, 128, 0.25


@dataclass(frozen=True)
class Importance:
    """Importance of the weights of linears that read the same input.

    Attributes:
        values: float32 [out_features, in_features] by full name of the linear, in nats a token by squared error.
        energy: float32 [in_features], second moment of each input.
    """

    values: Mapping[str, torch.Tensor]
    energy: torch.Tensor

    def divergence(self, linear: str, errors: torch.Tensor) -> float:
        """Divergence, in nats a token, that rounding errors [out_features, in_features] of a linear cause."""
        return float((errors.square() * self.values[linear]).sum())


def importances(
    checkpoint: Checkpoint, tokens: torch.Tensor, *, seed: int, damping: float, act_order: bool, dtype: torch.dtype
) -> Iterator[tuple[Block, list[Importance]]]:
    """Every decoder block in forward order, with the importance of its linears.

    Args:
        tokens: int64 [windows, length]; the last ones give gradients, the others second moments.
        seed: of the labels that are drawn.
        damping, act_order: of GPTQ, see `passes.hessian`.
        dtype: of the matrix products that second moments come from.

    Raises:
        RunError: a linear's inputs are not finite.
    """
    decoder = Decoder(checkpoint)
    tokens, texts = split(tokens)
    gradients = _output_gradients(decoder, texts, seed)
    hidden, stream = decoder.embed(texts), Stream(decoder, tokens, dtype)
    for index in range(checkpoint.architecture.layers):
        block = checkpoint.block(f"layers.{index}")
        seen = _Seen.of(decoder, block, hidden, gradients.pop())
        hidden = seen.outputs
        found = []
        for stage in stream.enter(block).stages():
            check_finite(stage.statistics, f"{block.prefix}{stage.linears[0]}")
            gram = stage.statistics.gram
            values = seen.importance(stage.linears, _error_spread(gram, damping, act_order))
            named = {f"{block.prefix}{name}": value for name, value in values.items()}
            found.append(Importance(named, gram.diagonal().clone()))
        yield block, found


def split(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows for second moments, and texts [texts, at most TEXT_LENGTH] for gradients, of windows [windows, length].

    A single window serves as both.
    """
    count, length = tokens.shape
    held_out = max(1, min(TEXTS, int(count * TEXT_SHARE)))
    width = min(length, TEXT_LENGTH)
    pieces = min(-(-TEXTS // held_out), length // width)
    texts = tokens[-held_out:, : pieces * width].reshape(-1, width)[:TEXTS]
    return tokens[: max(1, count - held_out)], texts


def _output_gradients(decoder: Decoder, texts: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Gradients of log p(labels) with respect to the outputs of every decoder layer, those of the last layer first.

    Each is float32 [texts, length, hidden_size].
    """
    checkpoint = decoder.checkpoint
    read = [decoder.embed(texts)]  # by each layer, and by the final norm
    for index in range(checkpoint.architecture.layers):
        read.append(read[-1].clone())
        decoder.run(decoder.layer(checkpoint.block(f"layers.{index}")), index, read[-1])
    gradients = [_score(decoder, read.pop(), seed)]
    for index in reversed(range(1, checkpoint.architecture.layers)):
        layer = decoder.layer(checkpoint.block(f"layers.{index}")).requires_grad_(False)
        context = decoder.context(index, texts.shape[1])
        pulled = [_pull_back(layer, context, *pair)[1] for pair in zip(read.pop(), gradients[-1], strict=True)]
        gradients.append(torch.stack(pulled))
    return gradients


def _score(decoder: Decoder, states: torch.Tensor, seed: int) -> torch.Tensor:
    """Gradient of log p(labels) with respect to what the final norm reads; a label is drawn for every position."""
    generator = torch.Generator().manual_seed(seed)
    head, norm, cap = decoder.head(), decoder.norm().requires_grad_(False), decoder.architecture.logit_softcap
    gradients = []
    for text in states:
        inputs = text.clone().requires_grad_()
        with torch.enable_grad():
            normed = norm(inputs)
        logits = decoder.logits(normed.detach(), head)
        slope = 1.0 if cap is None else 1 - (logits / cap).square_()
        chances = logits.softmax(-1)
        drawn = torch.rand(len(chances), 1, generator=generator)
        labels = torch.searchsorted(chances.cumsum(-1), drawn).clamp_(max=chances.shape[1] - 1)
        by_logits = chances.neg_().scatter_add_(1, labels, torch.ones_like(drawn)).mul_(slope)
        normed.backward(by_logits @ head)
        assert inputs.grad is not None
        gradients.append(inputs.grad)
    return torch.stack(gradients)


def _pull_back(
    layer: nn.Module, context: dict[str, Any], read: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a layer for one text [length, hidden_size], and the gradient with respect to its inputs."""
    inputs = read.unsqueeze(0).clone().requires_grad_()
    with torch.enable_grad():
        outputs = layer(inputs, **context)
    outputs.backward(gradient.unsqueeze(0))
    assert inputs.grad is not None
    return outputs.detach()[0], inputs.grad[0]


@dataclass(frozen=True)
class _Seen:
    """What the linears of one layer saw of the texts.

    Attributes:
        outputs: of the layer, float32 [texts, length, hidden_size].
        read: inputs [length, in_features] of each linear, text by text.
        gradients: with respect to the outputs [length, out_features] of each linear, text by text.
    """

    outputs: torch.Tensor
    read: Mapping[str, list[torch.Tensor]]
    gradients: Mapping[str, list[torch.Tensor]]

    @classmethod
    def of(cls, decoder: Decoder, block: Block, hidden: torch.Tensor, gradients: torch.Tensor) -> _Seen:
        """Run the texts [texts, length, hidden_size] through a layer, and the gradients back from its outputs."""
        assert block.index is not None
        layer = decoder.layer(block).requires_grad_(False)
        context = decoder.context(block.index, hidden.shape[1])
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        seen = cls(torch.empty_like(hidden), {name: [] for name in linears}, {name: [] for name in linears})
        with ExitStack() as hooks:
            for name, module in linears.items():
                hooks.callback(module.register_forward_hook(partial(seen._record, name)).remove)
            for text, (read, gradient) in enumerate(zip(hidden, gradients, strict=True)):
                seen.outputs[text] = _pull_back(layer, context, read, gradient)[0]
        return seen

    def importance(self, linears: tuple[str, ...], spread: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of the weights of linears that read the same input, [out_features, in_features] each.

        Args:
            spread: V of the module's text.
        """
        read = [text @ spread.T for text in self.read[linears[0]]]
        tokens = sum(len(text) for text in read)
        return {name: self._squares(name, read).div_(2 * tokens) for name in linears}

    def _squares(self, linear: str, read: list[torch.Tensor]) -> torch.Tensor:
        squares = torch.zeros(self.gradients[linear][0].shape[1], read[0].shape[1])
        # Tokens of a text are summed before squaring: one error meets them all.
        for gradient, inputs in zip(self.gradients[linear], read, strict=True):
            squares += (gradient.T @ inputs).square_()
        return squares

    def _record(self, name: str, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.read[name].append(inputs[0].detach()[0])
        output.register_hook(lambda gradient: self.gradients[name].append(gradient[0]))


def _error_spread(gram: torch.Tensor, damping: float, act_order: bool) -> torch.Tensor:
    """V [in_features, in_features]: row i is what an error of 1 in weight i makes of the row of weights under GPTQ."""
    hessian = Hessian.of(SecondMoments.of(gram), damping, act_order)
    order, factor = hessian.order, hessian.factor.matrix().T
    spread = torch.empty_like(factor)
    own = factor.diagonal().diag()
    spread[order.unsqueeze(1), order] = torch.linalg.solve_triangular(factor, own, upper=False, left=False)
    return spread
