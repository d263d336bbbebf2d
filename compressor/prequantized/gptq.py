"""The layout of AutoGPTQ and GPTQModel: integers packed along the input features, zero points along the output ones.

Versions 1 and 2 differ in the zero points alone: version 1 stores each one less by one.
Source: ModelCloud/GPTQModel, nn_modules/qlinear/__init__.py, utils/model.py and quantization/config.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass

from compressor.errors import InputError
from compressor.layout import unpack_words
from compressor.prequantized.parts import HALVES, REMEDY, Part
from compressor.prequantized.settings import GroupSize, width
from compressor.quantized import QuantizedWeight, Scheme

ONES = {4: 0x11111111, 8: 0x01010101}  # a word whose every element is one


@dataclass(frozen=True)
class GptqLayout:
    """How one folder is packed.

    Attributes:
        version: 1 or 2.
        borrows: whether version 1 was made by GPTQModel, which subtracts whole words, so that a zero point of 0
            borrows from its neighbour; other writers lose that neighbour.
        dynamic: rules by pattern of layer name: `-:pattern` leaves layers out, `+:pattern` overrides settings.
    """

    packed: ClassVar[str] = "qweight"
    only_values: ClassVar[bool] = False
    kv_cache: ClassVar[bool] = False

    bits: int
    group_size: GroupSize
    symmetric: bool
    version: int
    borrows: bool = False
    dynamic: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> GptqLayout:
        """The layout that a `quantization_config` or a quantize_config.json describes.

        Raises:
            InputError: a variant that cannot be read.
        """
        variant = config.get("checkpoint_format") or config.get("format") or "gptq"
        if variant not in ("gptq", "gptq_v2") or config.get("pack_dtype", "int32") != "int32":
            raise InputError(
                f"The GPTQ folder is stored as {variant} in {config.get('pack_dtype', 'int32')} words, "
                "of which gptq and gptq_v2 in int32 words can be read.",
                "Save it again with GPTQModel, format=gptq_v2.",
            )
        return cls(
            bits=config.get("bits", 4),
            group_size=config.get("group_size", 128),
            symmetric=config.get("sym", True),
            version=2 if variant == "gptq_v2" else 1,
            borrows=any(str(tool).startswith("gptqmodel") for tool in _quantizers(config)),
            dynamic=config.get("dynamic") or {},
        )

    def __str__(self) -> str:
        return f"GPTQ v{self.version}"

    def scheme(self, layer: str) -> Scheme:
        """How a layer that is stored packed is quantized.

        Raises:
            InputError: its bits have no place here, or a rule says it should not be quantized at all.
        """
        rule = self._rule(layer)
        if rule.bits not in ONES:
            raise InputError(f"{layer} is stored in {rule.bits} bits a weight, of which 4 and 8 can be read.")
        return Scheme(rule.bits, width(rule.group_size), rule.symmetric)

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix."""
        groups = in_features // scheme.group_width(in_features)
        return {
            "qweight": Part((in_features * scheme.bits // 32, out_features), (torch.int32,)),
            "qzeros": Part((groups, out_features * scheme.bits // 32), (torch.int32,)),
            "scales": Part((groups, out_features), HALVES),
        }

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """Tensors that may lie beside them."""
        return {"g_idx": Part((in_features,), (torch.int32, torch.int64))}

    def decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The weight that `parts` store.

        Raises:
            InputError: act-order has scattered the groups, or the zero points are not what the settings say.
        """
        in_features = parts["qweight"].shape[0] * 32 // scheme.bits
        if _is_scattered(parts.get("g_idx"), scheme.group_width(in_features)):
            raise InputError(
                f"{layer} was rounded with act-order (desc_act), which scatters its groups over the inputs; "
                "only groups of neighbours can be held.",
                f"{REMEDY} The pass gptq has an act-order that keeps groups together.",
            )
        return self._decode(layer, parts, scheme)

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values that `parts` store, float32 [out_features, in_features], wherever act-order put the groups.

        Raises:
            InputError: the zero points are not what the settings say, or an input is of no group.
        """
        weight, index = self._decode(layer, parts, scheme), parts.get("g_idx")
        if index is None:
            return weight.dequantize()
        groups, count = index.long(), weight.scales.shape[1]
        if bool((groups < 0).any()) or bool((groups >= count).any()):
            raise InputError(f"The g_idx of {layer} names a group that is not among its {count}.", "It is damaged.")
        values = weight.codes.float()
        if weight.zero_points is not None:
            values -= weight.zero_points[:, groups]
        return values * weight.scales[:, groups]

    def _decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The weight with its groups one after the other."""
        in_features = parts["qweight"].shape[0] * 32 // scheme.bits
        codes = unpack_words(parts["qweight"].T.contiguous(), scheme.bits, in_features)
        zero_points = self.zero_points(layer, parts, scheme)
        scales = parts["scales"].T.contiguous().float()
        return QuantizedWeight(codes, scales, None if scheme.symmetric else zero_points, scheme)

    def zero_points(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """Signed zero points, int8 [out_features, groups].

        Raises:
            InputError: they are not what the settings say, or version 1 lost one.
        """
        words = parts["qzeros"]
        out_features = words.shape[1] * 32 // scheme.bits
        if self.version == 1:
            self._check_borrow(layer, words, scheme, out_features)
            words = words + ONES[scheme.bits]
        zero_points = unpack_words(words, scheme.bits, out_features).T.contiguous()
        if scheme.symmetric and bool(zero_points.any()):
            raise InputError(
                f"The folder says sym=true, but the zero points of {layer} are not all {2 ** (scheme.bits - 1)}.",
                "If it was saved as gptq_v2, its config should say so; if it is asymmetric, sym=false.",
            )
        return zero_points

    def _rule(self, layer: str) -> GptqLayout:
        """This layout with the settings that the first rule for `layer` overrides."""
        for pattern, settings in self.dynamic.items():
            if not _matches(pattern, layer):
                continue
            if pattern.startswith("-:"):
                raise InputError(f"{layer} is stored quantized, but the rule {pattern!r} says that it is not.")
            renamed = {"symmetric" if key == "sym" else key: value for key, value in settings.items()}
            return replace(self, **{key: renamed[key] for key in ("bits", "group_size", "symmetric") if key in renamed})
        return self

    def _check_borrow(self, layer: str, words: torch.Tensor, scheme: Scheme, out_features: int) -> None:
        stored = unpack_words(words, scheme.bits, out_features)
        if not self.borrows and bool((stored == scheme.highest).any()):
            raise InputError(
                f"A zero point of {layer} is 0, which GPTQ v1 cannot hold: readers disagree on its neighbours.",
                "Save the model again as gptq_v2.",
            )


def _quantizers(config: Mapping[str, Any]) -> list[Any]:
    found = (config.get("meta") or {}).get("quantizer") or []
    return found if isinstance(found, list) else [found]


def _matches(pattern: str, layer: str) -> bool:
    try:
        return re.match(pattern.removeprefix("-:").removeprefix("+:"), layer) is not None
    except re.error as error:
        raise InputError(f"The rule {pattern!r} of the GPTQ folder is no regular expression ({error}).") from error


def _is_scattered(index: torch.Tensor | None, group_width: int) -> bool:
    """Whether groups are other than runs of neighbours."""
    return index is not None and not torch.equal(index.long(), torch.arange(len(index)) // group_width)
