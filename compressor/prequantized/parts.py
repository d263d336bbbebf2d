"""What a layout of another tool has to say: which tensors store one weight, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from compressor.quantized import QuantizedWeight, Scheme

# Said by every verb that opens a model, of which only one has the option.
REMEDY = (
    "`llmc compress MODEL --requantize ...` reads it as a float model; "
    "other commands take the folder steps/00-import that this leaves."
)
HALVES = (torch.float16, torch.bfloat16, torch.float32)  # what a scale may be stored in


@dataclass(frozen=True)
class Part:
    """One tensor that stores a part of a weight: its shape (None: the content says it), and the dtypes it may have."""

    shape: tuple[int, ...] | None
    dtypes: tuple[torch.dtype, ...]


class Layout(Protocol):
    """How one tool packs the weight of one linear into tensors."""

    only_values: ClassVar[bool]  # there are no codes that could be kept

    @property
    def packed(self) -> str:
        """Suffix of a tensor that only a quantized linear has."""
        ...

    @property
    def kv_cache(self) -> bool:
        """Whether scales of an fp8 key-value cache are stored."""
        ...

    def scheme(self, layer: str) -> Scheme:
        """How a layer that is stored packed is quantized."""
        ...

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix."""
        ...

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """Tensors that may lie beside them."""
        ...

    def decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The weight that `parts` store."""
        ...

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values that `parts` store, float32 [out_features, in_features]."""
        ...

    def zero_points(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """Its signed zero points, int8 [out_features, groups]; asked of asymmetric schemes only."""
        ...
