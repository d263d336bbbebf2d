"""One decoder layer on the calibration text, stage by stage.

The linears of a layer are met in forward order, those that read the same input together. Each is observed on what
the already replaced linears before it give, and every activation is computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch import nn

from calibration import attention
from calibration.activations import InputStatistics
from calibration.spool import Spool
from compressor.checkpoint import Block, Weight
from compressor.decoder import Decoder, batches, core_of, dense
from compressor.families import Branch, Modules
from compressor.memory import give_back, reuse
from compressor.quantized import QuantizedWeight
from compressor.rounding import equip

# Inputs of a linear from which on their second moments fill the memory: a moment to give freed memory back is worth it
# then, and fewer activations stay in memory.
WIDE = 4096


@dataclass(frozen=True)
class Stage:
    """Linears that read the same input: names within the layer (`self_attn.q_proj`) and statistics of that input."""

    linears: tuple[str, ...]
    statistics: InputStatistics


class Lane:
    """One decoder layer and the text that runs through it.

    Args:
        layer: the decoder layer.
        modules: names of its modules.
        context: keyword arguments of its attention: positions, mask.
        hidden: float32 [samples, length, hidden_size], what the layer reads; replaced by its outputs.
        dtype: of the matrix products, and of the layer's weights. The residual stream and the norms are float32.
    """

    def __init__(
        self, layer: nn.Module, modules: Modules, context: Mapping[str, Any], hidden: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.layer, self.modules, self.hidden, self.dtype = layer, modules, hidden, dtype
        self._context = {key: _cast(value, dtype) for key, value in context.items()}
        if dtype == torch.bfloat16:
            attention.use_in(layer.get_submodule(modules.attention.body))

    def read(self, branch: Branch) -> Iterator[torch.Tensor]:
        """What the first linears of a branch read, batch by batch."""
        norm = self.layer.get_submodule(branch.norm)
        return (norm(batch).to(self.dtype) for batch in batches(self.hidden))

    def inner(self, branch: Branch, read: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What the last linear of a branch reads when the first ones read `read`, batch by batch."""
        body = self.layer.get_submodule(branch.body)
        context = self._context if branch is self.modules.attention else {}
        for inputs in read:
            with _without(body, branch.last.removeprefix(f"{branch.body}.")):
                outputs = body(inputs, **context)
            yield outputs[0] if isinstance(outputs, tuple) else outputs

    def bytes_into(self, linear: str) -> int:
        """What all inputs of a linear take."""
        samples, length, _ = self.hidden.shape
        width = self.layer.get_parameter(f"{linear}.weight").shape[1]
        return samples * length * width * self.dtype.itemsize

    def release(self, linears: Iterable[str]) -> None:
        """Let go of weights that are not needed any more."""
        for linear in linears:
            module: Any = self.layer.get_submodule(linear)
            module.weight = None

    def finish(self, branch: Branch, inner: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Add what the branch makes of `inner` to the hidden states; yields each batch of it before."""
        last = self.layer.get_submodule(branch.last)
        post_norm = self.layer.get_submodule(branch.post_norm) if branch.post_norm else None
        for batch, values in zip(batches(self.hidden), inner, strict=True):
            yield values
            outputs = last(values)
            batch.add_(outputs if post_norm is None else post_norm(outputs.float()))


class LayerWalk:
    """Walks one layer.

    Args:
        text: the layer, whose linears may be given new weights between two stages.
        original: the layer as it was, with the first samples as they are without any change to the model; their
            difference goes into the statistics.
        scratch: folder for activations that are too large to keep in memory.
    """

    def __init__(self, text: Lane, original: Lane | None, scratch: Path) -> None:
        self._text, self._original, self._scratch = text, original, scratch

    def release(self, linear: str) -> None:
        """Let go of the weight of a linear that is going to be replaced."""
        self._text.release((linear,))

    def replace(self, linear: str, weight: Weight) -> None:
        """Give a linear (named as in `Stage.linears`) a new weight; it reads its inputs as that asks for."""
        module = self._text.layer.get_submodule(linear)
        # A new parameter: the original shares the old one.
        module.weight = nn.Parameter(dense(core_of(weight), self._text.dtype), requires_grad=False)
        if isinstance(weight, QuantizedWeight):
            equip(module, weight)

    @torch.no_grad()
    def stages(self, moments: bool = True, observer: type[InputStatistics] = InputStatistics) -> Iterator[Stage]:
        """Every stage in forward order; when they are through, the hidden states are the outputs of the layer.

        Args:
            moments: whether the statistics have second moments.
            observer: takes the statistics.
        """
        for branch in self._text.modules.branches:
            yield from self._stages_of(branch, moments, observer)

    def _stages_of(self, branch: Branch, moments: bool, observer: type[InputStatistics]) -> Iterator[Stage]:
        text, original = self._text, self._original
        first, last = branch.first, branch.last
        read, inner = (self._spool(linear) for linear in (first[0], last))
        references = original.read(branch) if original else ()
        yield Stage(first, _observe(read.keep(text.read(branch)), references, None, moments, observer))

        weight = (original or text).layer.get_parameter(f"{last}.weight")
        through = weight if weight.shape[0] < weight.shape[1] else None
        wide = moments and weight.shape[1] >= WIDE
        if wide:
            give_back()
        references = original.finish(branch, original.inner(branch, original.read(branch))) if original else ()
        statistics = _observe(inner.keep(text.inner(branch, read)), references, through, moments, observer)
        # Memory is short at the last linear of a wide MLP: what has done its work goes before.
        del read, weight, through
        text.release(first)
        if original:
            original.release((*first, last))
        if wide:
            give_back()
        yield Stage((last,), statistics)

        for _ in text.finish(branch, inner):
            pass
        text.release((last,))
        if wide:
            give_back()

    def _spool(self, linear: str) -> Spool:
        """For what a linear reads."""
        wide = self._text.layer.get_parameter(f"{linear}.weight").shape[1] >= WIDE
        return Spool(self._text.bytes_into(linear), self._scratch, 0.5 if wide else 1)


def _observe(
    inputs: Iterable[torch.Tensor],
    references: Iterable[torch.Tensor],
    through: torch.Tensor | None,
    moments: bool,
    observer: type[InputStatistics],
) -> InputStatistics:
    """Statistics of batches of inputs; the references belong to the first of them, `through` is for their drift."""
    statistics: InputStatistics | None = None
    for batch, reference in zip_longest(inputs, references):
        statistics = statistics or observer(batch.shape[-1], through, moments)
        statistics.add(batch, reference)
    assert statistics is not None  # there is always text
    return statistics


@contextmanager
def _without(body: nn.Module, linear: str) -> Iterator[None]:
    """Let `body` return what goes into its last linear."""
    module = getattr(body, linear)
    setattr(body, linear, nn.Identity())
    try:
        yield
    finally:
        setattr(body, linear, module)


def _sharing(layer: nn.Module) -> nn.Module:
    """A copy of a layer that holds the same parameters, not copies of them."""
    return copy.deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Stream:
    """The calibration text on its way through a model: `hidden`, float32 [samples, length, hidden_size].

    `original` is what the first samples are in the model that this one shall come close to.

    Args:
        originals: how many of the samples also go through that model: this one as it is, without the changes made on
            the way, unless `enter` is given other blocks.
        scratch: folder for activations that are too large to keep in memory; None is the system's.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens: torch.Tensor,
        dtype: torch.dtype,
        originals: int = 0,
        scratch: Path | None = None,
    ) -> None:
        reuse()
        self._decoder, self._dtype, self._scratch = decoder, dtype, scratch or Path(gettempdir())
        self.hidden = decoder.embed(tokens)
        self.original = self.hidden[:originals].clone()

    def enter(self, block: Block, original: Block | None = None) -> LayerWalk:
        """The decoder layer of `block`, to be walked from where the text now is.

        Args:
            original: the same block of the model that this one shall come close to; None is `block`.
        """
        assert block.index is not None
        context = self._decoder.context(block.index, self.hidden.shape[1])
        layer = self._decoder.layer(block, self._dtype)
        modules, dtype = self._decoder.architecture.modules, self._dtype
        before = None
        if len(self.original):
            copied = _sharing(layer) if original is None else self._decoder.layer(original, dtype)
            before = Lane(copied, modules, context, self.original, dtype)
        return LayerWalk(Lane(layer, modules, context, self.hidden, dtype), before, self._scratch)

    def at_head(self) -> InputStatistics:
        """Statistics of what lm_head reads; the hidden states go through the final norm."""
        self._decoder.final_norm(self.hidden)
        statistics = InputStatistics(self.hidden.shape[-1])
        for batch in batches(self.hidden):
            statistics.add(batch.to(self._dtype))
        return statistics


def fast_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies matrices in it (AVX512-BF16, AMX), else float32."""
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
