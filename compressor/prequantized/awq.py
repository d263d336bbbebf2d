"""The GEMM layout of AutoAWQ: integers and zero points packed along the output features, eight to a word, interleaved.

Source: casper-hansen/AutoAWQ, awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass

from compressor.errors import InputError
from compressor.layout import unpack_words
from compressor.prequantized.parts import HALVES, Part
from compressor.prequantized.settings import GroupSize, width
from compressor.quantized import QuantizedWeight, Scheme

PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where the eight columns of a word lie in it


@dataclass(frozen=True)
class AwqLayout:
    """How one folder is packed. The scales that AWQ multiplied activations with are folded into the layers before."""

    packed: ClassVar[str] = "qweight"
    only_values: ClassVar[bool] = False
    kv_cache: ClassVar[bool] = False

    group_size: GroupSize
    symmetric: bool

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> AwqLayout:
        """The layout that a `quantization_config` describes.

        Raises:
            InputError: a variant that cannot be read.
        """
        bits, version = config.get("bits", config.get("w_bit", 4)), str(config.get("version", "gemm")).lower()
        if bits != 4 or version != "gemm":
            raise InputError(f"The AWQ folder holds {bits} bits as {version}, of which 4 bits as gemm can be read.")
        return cls(config.get("group_size", config.get("q_group_size", 128)), not config.get("zero_point", True))

    def __str__(self) -> str:
        return "AWQ GEMM"

    def scheme(self, layer: str) -> Scheme:
        """How a layer that is stored packed is quantized."""
        return Scheme(4, width(self.group_size), self.symmetric)

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix."""
        groups = in_features // scheme.group_width(in_features)
        return {
            "qweight": Part((in_features, out_features // 8), (torch.int32,)),
            "qzeros": Part((groups, out_features // 8), (torch.int32,)),
            "scales": Part((groups, out_features), HALVES),
        }

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """Tensors that may lie beside them."""
        return {}

    def decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The weight that `parts` store.

        Raises:
            InputError: the zero points are not what the settings say.
        """
        codes, zero_points = _unpack(parts["qweight"]), self.zero_points(layer, parts, scheme)
        scales = parts["scales"].T.contiguous().float()
        return QuantizedWeight(codes, scales, None if scheme.symmetric else zero_points, scheme)

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values that `parts` store, float32 [out_features, in_features]."""
        return self.decode(layer, parts, scheme).dequantize()

    def zero_points(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """Signed zero points, int8 [out_features, groups].

        Raises:
            InputError: they are not what the settings say.
        """
        zero_points = _unpack(parts["qzeros"])
        if scheme.symmetric and bool(zero_points.any()):
            raise InputError(f"The folder says zero_point=false, but the zero points of {layer} are not all 8.")
        return zero_points


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 words [rows, out_features / 8] to int8 [out_features, rows], offset removed."""
    as_stored = unpack_words(words, 4, words.shape[1] * 8)
    return as_stored.view(words.shape[0], -1, 8)[..., PLACES].flatten(1).T.contiguous()
