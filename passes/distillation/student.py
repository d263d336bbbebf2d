"""The student: a whole transformers model in float32, what of it is trained, and the checkpoint that comes of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import nn

from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import full_model
from compressor.errors import RunError

BYTES_A_WEIGHT = 16  # of a trained one: its value, its gradient and two moments, float32
MEMORY_SHARE = 0.9  # of what is free
BETAS = (0.9, 0.95)


class Student(Protocol):
    """Something that is trained. `model` is the transformers model whose parameters with a gradient are."""

    model: Any

    def optimizer(self) -> torch.optim.Optimizer:
        """What updates it; its rate is set before every step."""
        ...

    def weights(self, block: Block) -> Mapping[str, Weight]:
        """What training made of the weights of a block, by parameter name; those that stay may be left out."""
        ...


def whole_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint as a transformers model in float32, ready to be trained; all of it is in memory.

    Raises:
        RunError: it does not fit in the memory that is free.
    """
    needed = BYTES_A_WEIGHT * checkpoint.architecture.parameters
    free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise RunError(
            f"Training holds the whole student, {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB of memory are free.",
            "lora_rank=16 trains less of it; or train on a larger machine.",
        )
    return without_dropout(full_model(checkpoint).float().train())


def without_dropout(model: Any) -> Any:
    """The model, which computes in training what it computes afterwards: a teacher's predictions need no noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


class FullStudent:
    """Every parameter is trained."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = whole_model(checkpoint)

    def optimizer(self) -> torch.optim.Optimizer:
        return adam(self.model)

    def weights(self, block: Block) -> Mapping[str, Weight]:
        return trained_weights(self.model.state_dict(), block)


class LoraStudent:
    """Low-rank changes of every linear but lm_head are trained, and merged in the end."""

    def __init__(self, checkpoint: Checkpoint, rank: int) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied weights, which are not adapted
            self.model = get_peft_model(whole_model(checkpoint), config)
        self._merged: Mapping[str, torch.Tensor] | None = None

    def optimizer(self) -> torch.optim.Optimizer:
        return adam(self.model)

    def weights(self, block: Block) -> Mapping[str, Weight]:
        if self._merged is None:
            self._merged = self.model.merge_and_unload().state_dict()
        return trained_weights(self._merged, block)


def adam(model: Any) -> torch.optim.Optimizer:
    """AdamW without decay, of the parameters that have a gradient."""
    trained = [one for one in model.parameters() if one.requires_grad]
    return torch.optim.AdamW(trained, betas=BETAS, weight_decay=0.0, fused=True)


def trained_weights(trained: Mapping[str, torch.Tensor], block: Block) -> dict[str, Weight]:
    """The trained values of a block's float weights, float32."""
    floats = [name for name, weight in block.weights.items() if isinstance(weight, torch.Tensor)]
    return {name: trained[name].float().cpu() for name in floats}


def write(
    student: Student, checkpoint: Checkpoint, out: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None
) -> Checkpoint:
    """The trained student as a checkpoint of its own; `dtype` is of all float parameters, as in `rewrite`.

    Raises:
        RunError: a weight is not finite.
    """

    def edit(block: Block) -> Block:
        weights = student.weights(block)
        for name, weight in weights.items():
            if isinstance(weight, torch.Tensor) and not bool(weight.isfinite().all()):
                raise RunError(f"Training left NaN or Inf in {name}.", "A lower learning_rate may help.")
        stored = {name: _rounded(weight, block.weights[name], dtype) for name, weight in weights.items()}
        return block.with_weights(stored)

    return checkpoint.rewrite(out, edit, provenance, dtype)


def _rounded(trained: Weight, before: Weight, dtype: torch.dtype | None) -> Weight:
    """A float weight in `dtype`, or None: in the one that it was stored in before. This is where it is rounded."""
    if isinstance(trained, torch.Tensor) and isinstance(before, torch.Tensor):
        return trained.to(dtype or before.dtype)
    return trained
