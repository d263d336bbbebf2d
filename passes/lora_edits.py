"""What adapters do to the parameters of a model, as values: the tensors that make each change, read when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from compressor.adapter import Adapter
from passes.lora_delta import Change, Delta, Hadamard, Kronecker, LowRank, LowRankTable, Shift, combine

MAGNITUDE, ROWS = "lora_magnitude_vector", "trainable_tokens_delta"
# Parts that make one change of a weight; a module has all of one of these.
PRODUCTS = (
    {"lora_A", "lora_B"},
    {"lora_embedding_A", "lora_embedding_B"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    *({*first, *second} for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
      for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})),
)  # fmt: skip


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Edit:
    """What one adapter does to one parameter.

    Attributes:
        module: that the parameter belongs to, as the adapter calls it.
        parts: keys of its tensors by what they are; `weight` or `bias` is a whole new parameter.
        scaling: of its low-rank product.
        rows: of the table, that `trainable_tokens_delta` replaces.
        transposed: whether a new parameter lies as [in_features, out_features] in its file.
    """

    adapter: Adapter
    weight: float
    module: str
    parts: Mapping[str, str]
    scaling: float = 1.0
    rows: Sequence[int] = ()
    transposed: bool = False

    @property
    def whole(self) -> str | None:
        """Key of the new parameter that stands in the base's place."""
        return self.parts.get("weight") or self.parts.get("bias")

    @property
    def replaces(self) -> bool:
        """Whether it brings newly trained values, and not only a copy of what the base had."""
        whole = self.whole
        return bool(self.rows) or (whole is not None and not whole.endswith(".base_layer.weight"))

    @property
    def is_product(self) -> bool:
        return any(product <= self.parts.keys() for product in PRODUCTS)

    def shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors in memory, by what they are."""
        found = {part: self.adapter.tensors[key].shape for part, key in self.parts.items()}
        return found | {"weight": found["weight"][::-1]} if self.transposed and "weight" in found else found

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors in float32, by what they are."""
        read = self.adapter.read(self.parts.values())
        found = {part: read[key] for part, key in self.parts.items()}
        return found | {"weight": found["weight"].T} if self.transposed and "weight" in found else found


@dataclass(frozen=True)
class Edits:
    """What all adapters do, by parameter.

    Attributes:
        vocab_size: of the model afterwards.
        unties: whether a tied head is no longer the embedding afterwards.
        notes: for the ledger.
    """

    by_parameter: Mapping[str, Sequence[Edit]]
    combination: str
    vocab_size: int
    unties: bool = False
    notes: list[str] = field(default_factory=list)

    def of(self, parameter: str) -> Change | None:
        """What is done to a parameter, the adapters' tensors read; None when nothing is."""
        edits = self.by_parameter.get(parameter)
        return _change(edits, self.combination) if edits else None


def product(parts: Mapping[str, torch.Tensor], scaling: float) -> Delta | None:
    """The change that these tensors make, or None when they make none."""
    if "lora_A" in parts:
        return LowRank(scaling, parts["lora_B"], parts["lora_A"])
    if "lora_embedding_A" in parts:
        return LowRankTable(scaling, parts["lora_embedding_B"], parts["lora_embedding_A"])
    if "hada_w1_a" in parts:
        return Hadamard(scaling, *(parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")))
    if parts.keys() & {"lokr_w1", "lokr_w1_a"}:
        return Kronecker(scaling, *(_factor(parts, name) for name in ("lokr_w1", "lokr_w2")))
    if "lora_B.bias" in parts:
        return Shift(scaling, parts["lora_B.bias"])
    return None


def _factor(parts: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def _change(edits: Sequence[Edit], combination: str) -> Change:
    read = [(one, one.tensors()) for one in edits]
    made = [(product(parts, one.scaling), one.weight) for one, parts in read]
    deltas = [(delta, weight) for delta, weight in made if delta is not None]
    return Change(
        next((parts[name] for _, parts in read for name in ("weight", "bias") if name in parts), None),
        combine([delta for delta, _ in deltas], [weight for _, weight in deltas], combination),
        next((parts[MAGNITUDE] for _, parts in read if MAGNITUDE in parts), None),
        by_column=any("lora_embedding_A" in parts for _, parts in read),
        row_indices=next((torch.tensor(one.rows) for one, parts in read if ROWS in parts), None),
        new_rows=next((parts[ROWS] for _, parts in read if ROWS in parts), None),
    )
