"""Statistics of what the linears of one decoder layer read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class InputGram:
    """Running mean of x xᵀ over the inputs x of a linear: float32 [in_features, in_features]."""

    mean: torch.Tensor
    rows: int = 0

    @classmethod
    def empty(cls, in_features: int) -> InputGram:
        return cls(torch.zeros(in_features, in_features))

    def add(self, inputs: torch.Tensor) -> None:
        """Take a batch of inputs [..., in_features]."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.rows += flat.shape[0]
        share = flat.shape[0] / self.rows
        self.mean.addmm_(flat.T, flat, beta=1 - share, alpha=1 / self.rows)


class InputObserver:
    """Context manager that gathers an `InputGram` for each named linear while the layer runs.

    Linears that are handed the very same tensor (q/k/v, gate/up) share one statistic, computed once.
    """

    def __init__(self, layer: nn.Module, names: Iterable[str]) -> None:
        self._modules = {name: layer.get_submodule(name) for name in names}
        self._owner: dict[str, str] = {}  # linear -> the first linear that reads the same input
        self._grams: dict[str, InputGram] = {}
        self._last: tuple[str, torch.Tensor] | None = None

    def __enter__(self) -> InputObserver:
        self._handles = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: self._see(name, inputs[0]))
            for name, module in self._modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def groups(self) -> dict[tuple[str, ...], InputGram]:
        """Linears that share an input, each group with its statistic."""
        return {
            tuple(name for name, owner in self._owner.items() if owner == first): gram
            for first, gram in self._grams.items()
        }

    def _see(self, name: str, inputs: torch.Tensor) -> None:
        if self._last is not None and self._last[1] is inputs:
            self._owner[name] = self._last[0]
            return
        self._owner[name] = name
        self._last = (name, inputs)
        self._grams.setdefault(name, InputGram.empty(inputs.shape[-1])).add(inputs)
