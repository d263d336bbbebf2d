"""The fine-tuned model as a value: a checkpoint that is read with adapters in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from compressor.checkpoint import Checkpoint, Weight
from compressor.families import HEAD
from compressor.files import digest_json
from compressor.shards import TensorInfo
from passes.lora_edits import Edits
from passes.lora_tables import tables
from passes.lora_tokenizer import beside


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """A float checkpoint that is read with adapters in it: the fine-tuned model.

    Attributes:
        base: the checkpoint without them.
        rounded: whether changed parameters come in the dtype they are stored in, or in float32 as they were computed.
        adapters_digest: of what decides the change.
        brought: files beside the weights that the adapters bring, by name.
    """

    base: Checkpoint = field(kw_only=True)
    edits: Edits = field(kw_only=True, repr=False)
    rounded: bool = field(kw_only=True)
    adapters_digest: str = field(kw_only=True)
    brought: Mapping[str, Path] = field(kw_only=True, repr=False)

    @cached_property
    def digest(self) -> str:
        """Digest of the base and of the adapters."""
        return digest_json({"base": self.base.digest, "adapters": self.adapters_digest, "rounded": self.rounded})

    @property
    def companions(self) -> dict[str, Path]:
        return beside(self.root, self.brought)

    def read(self, parameters: list[str]) -> dict[str, Weight]:
        return {name: self._read(name) for name in parameters}

    def source(self, parameter: str) -> str:
        """The base's parameter that it is made from: a head that is untied starts as the embedding."""
        tied = parameter == f"{HEAD}.weight" and self.base.architecture.tied_embeddings
        return f"{self.architecture.embedding}.weight" if tied else parameter

    def stored_info(self, parameter: str, dtype: torch.dtype | None) -> TensorInfo:
        """What the parameter is when it is stored in `dtype`, or in the base's own where that is None."""
        found = self.base.tensors[self.source(parameter)]
        shape = (self.rows_of(parameter), *found.shape[1:])
        return replace(found, name=parameter, dtype=dtype or found.dtype, shape=shape)

    def rows_of(self, parameter: str) -> int:
        """Rows of a parameter as it is stored: as many as the base's, but in a table of tokens."""
        if parameter in tables(self.architecture):
            return self.architecture.vocab_size
        return self.base.tensors[parameter].shape[0]

    def _read(self, parameter: str) -> torch.Tensor:
        source, change = self.source(parameter), self.edits.of(parameter)
        weight = self.base.read([source])[source]
        assert isinstance(weight, torch.Tensor)  # `plan` refuses quantized checkpoints
        if parameter in tables(self.architecture):
            weight = resized(weight, self.architecture.vocab_size)
        return weight if change is None else change.apply(weight, weight.dtype if self.rounded else torch.float32)


def resized(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A table cut off behind so many rows, or with rows of zeros behind it, which the adapter's take the place of."""
    if len(table) >= rows:
        return table[:rows]
    return torch.cat([table, table.new_zeros(rows - len(table), *table.shape[1:])])
