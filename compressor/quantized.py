"""The one quantized representation: codes, scales and zero points of a linear weight.

A pass decides these numbers once. Every layout on disk and every target repacks the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from compressor import nf4, nvfp4
from compressor.errors import InputError
from compressor.low_rank import LowRank, same_factors

# Scales are numbers that float16 and bfloat16 both hold, so that every runtime multiplies by the same one.
FP16_SMALLEST_NORMAL = 2.0**-14
FP16_STEP = 2.0**-24  # distance between float16 subnormals
FP16_COARSER_BELOW = 2.0**-16  # where that distance is more than bfloat16's eight significant bits need
LARGEST_SHARED_SCALE = 65280.0  # largest bfloat16 number below float16's maximum of 65504

FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0  # there is no infinity above it

WeightType = Literal["int", "float", "nf4", "low-rank"]

# What a linear may have beside its quantized matrix, each a field of `Scheme` and of `QuantizedWeight`, and what it is
# called. compressed-tensors has no word for these: see layout/extensions.py.
EXTENSIONS = {"input_factors": "factors of its inputs", "rank": "low-rank factors"}


@dataclass(frozen=True)
class Activations:
    """How the inputs of a linear are rounded while the model runs, symmetric.

    Attributes:
        type: "int" codes are -128 to 127; "float" is fp8 (e4m3), or NVFP4 in four bits.
        dynamic: one scale a token, found while running; otherwise one scale a tensor, found on calibration text
            and stored as `QuantizedWeight.input_scale`. NVFP4 has that, and block scales found while running.
    """

    bits: int = 8
    type: Literal["int", "float"] = "int"
    dynamic: bool = True

    def __str__(self) -> str:
        kind = f"{'fp' if self.type == 'float' else 'int'}{self.bits} activations"
        return f"{kind} per token" if self.dynamic else f"static {kind}"


@dataclass(frozen=True)
class Scheme:
    """How a weight is quantized.

    Attributes:
        group_size: input features that share a scale; None is one scale per output channel.
        type: what a code is: an integer, a float (eight bits: fp8 e4m3; four: NVFP4, in groups of 16), or an index
            into the table of NF4.
        activations: how the layer's inputs are rounded; None leaves them as they are.
        double_quant: whether the scales are themselves rounded to eight bits; NF4 only.
        table: integer rows are looked up, as an embedding's are, and stored one code a byte.
        per_tensor: all output channels have one scale in common; fp8 only.
        input_factors: the layer's inputs are multiplied by factors of their own before anything else.
        rank: of factors beside the quantized matrix, or in the place of one (type "low-rank"); 0 is none.
    """

    bits: int
    group_size: int | None
    symmetric: bool = True
    type: WeightType = "int"
    activations: Activations | None = None
    double_quant: bool = False
    table: bool = False
    per_tensor: bool = False
    input_factors: bool = False
    rank: int = 0

    @property
    def extensions(self) -> dict[str, Any]:
        """Those of `EXTENSIONS` that layers of this scheme have, with their values."""
        found = {name: getattr(self, name) for name in EXTENSIONS}
        return {name: value for name, value in found.items() if value}

    @property
    def core(self) -> Scheme:
        """The scheme of the quantized matrix alone."""
        return replace(self, input_factors=False, rank=0)

    @property
    def lowest(self) -> int:
        """The smallest code of an integer scheme."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code of an integer scheme."""
        return 2 ** (self.bits - 1) - 1

    @property
    def kind(self) -> str:
        """What the codes are: int4, int8, fp8, nvfp4 or nf4; low-rank where there are none."""
        if self.type == "float":
            return "fp8" if self.bits == 8 else "nvfp4"
        return f"int{self.bits}" if self.type == "int" else self.type

    def group_width(self, in_features: int) -> int:
        """Input features that share one scale.

        Raises:
            InputError: the group size does not divide `in_features`; the hint names sizes that do.
        """
        if self.group_size is None:
            return in_features
        if in_features % self.group_size:
            fitting = [str(size) for size in (128, 64, 32) if in_features % size == 0]
            hint = f"group_size {' or '.join(fitting)} works" if fitting else "group_size=channel works"
            raise InputError(f"Group size {self.group_size} does not divide the input width {in_features}.", hint)
        return self.group_size

    def __str__(self) -> str:
        if self.type == "low-rank":
            return f"low-rank r{self.rank}" if self.rank else "low-rank"
        whole = "tensor" if self.per_tensor else "channel"
        group = whole if self.group_size is None else f"g{self.group_size}"
        balance = f" {'symmetric' if self.symmetric else 'asymmetric'}" if self.type == "int" else ""
        double = " double-quantized" if self.double_quant else ""
        activations = f", {self.activations}" if self.activations else ""
        factors = ", inputs multiplied" if self.input_factors else ""
        branch = f", low-rank r{self.rank} beside" if self.rank else ""
        return f"{self.kind} {group}{balance}{double}{activations}{factors}{branch}"


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A linear weight as codes.

    Attributes:
        codes: [out_features, in_features]: int8, each in [-2^(bits-1), 2^(bits-1) - 1]; of fp8, float8_e4m3fn; of
            NVFP4, float8_e4m3fn too, which has all numbers of e2m1; of NF4, uint8 indices into its table.
        scales: float32 [out_features, groups]; one that is shared by the tensor is repeated.
        zero_points: int8 [out_features, groups] in the range of the codes, or None when symmetric.
        input_scale: the one scale of the layer's inputs, float32 [], or None unless activations are static.
        rounded_scales: what `scales` are the values of, where they are themselves rounded; else None.
        input_factors: what the layer's inputs are multiplied by before they are rounded and meet the codes, float32
            [in_features]; None where the scheme has none.
        branch: factors whose product is added to the matrix, or None; they read the inputs as the layer does.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    scheme: Scheme
    input_scale: torch.Tensor | None = None
    rounded_scales: nf4.RoundedScales | nvfp4.BlockScales | None = None
    input_factors: torch.Tensor | None = None
    branch: LowRank | None = None

    @property
    def core(self) -> QuantizedWeight:
        """The quantized matrix alone, without what `Scheme.extensions` has beside it."""
        if not self.scheme.extensions:
            return self
        return replace(self, scheme=self.scheme.core, input_factors=None, branch=None)

    def beside(self, branch: LowRank) -> QuantizedWeight:
        """The same matrix with factors beside it."""
        return replace(self, scheme=replace(self.scheme, rank=branch.rank), branch=branch)

    def dequantize(self) -> torch.Tensor:
        """The value of the weight, float32 [out_features, in_features]: (code - zero_point) * scale * input factor,
        and the product of the factors beside it.

        It is all that the layer multiplies its inputs by. `core.dequantize()` is what multiplies them after their
        factors, which matters where they are rounded in between.
        """
        if self.scheme.extensions:
            return self._extended(self.core.dequantize())
        if self.scheme.type == "nf4":
            return nf4.dequantize(self.codes, self.scales)
        rows, columns = self.codes.shape
        grouped = self.codes.view(rows, self.scales.shape[1], -1).float()
        if self.zero_points is not None:
            grouped = grouped - self.zero_points.unsqueeze(-1).float()
        return (grouped * self.scales.unsqueeze(-1)).view(rows, columns)

    def rows(self, indices: torch.Tensor) -> QuantizedWeight:
        """The weight of some output channels, given by int64 [n]."""
        zero_points = None if self.zero_points is None else self.zero_points[indices]
        return replace(self, codes=self.codes[indices], scales=self.scales[indices], zero_points=zero_points)

    def same_bits(self, other: QuantizedWeight) -> bool:
        """Whether the other weight has equal codes and zero points, bit for bit, and numerically equal scales."""
        same_codes = self.codes.dtype == other.codes.dtype and _equal(_bytes(self.codes), _bytes(other.codes))
        return (
            same_codes
            and _equal(self.scales, other.scales)
            and _equal(self.zero_points, other.zero_points)
            and _equal(self.input_scale, other.input_scale)
            and _equal(self.tensor_scale, other.tensor_scale)
            and _equal(self.input_factors, other.input_factors)
            and same_factors(self.branch, other.branch)
        )

    def _extended(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the quantized matrix with what is beside it; they are used up."""
        if self.input_factors is not None:
            values.mul_(self.input_factors)
        return values if self.branch is None else values.add_(self.branch.dequantize())

    @property
    def tensor_scale(self) -> torch.Tensor | None:
        """The scale that the block scales of NVFP4 are multiplied by, float32 []; None of other weights."""
        return self.rounded_scales.tensor_scale if isinstance(self.rounded_scales, nvfp4.BlockScales) else None

    @property
    def block_scales(self) -> nvfp4.BlockScales:
        """The scales of an NVFP4 weight as they are stored."""
        assert isinstance(self.rounded_scales, nvfp4.BlockScales)
        return self.rounded_scales

    @property
    def storage_bits(self) -> int:
        """Bits that the codes, 16-bit scales and factors, and zero points take when packed without padding."""
        if self.scheme.extensions:
            factors = 0 if self.input_factors is None else self.input_factors.numel() * 16
            return self.core.storage_bits + factors + (0 if self.branch is None else self.branch.storage_bits)
        if self.scheme.type == "nf4":
            return self.codes.numel() * 4 + nf4.scale_bits(self.scales.numel(), self.scheme.double_quant)
        if self.scheme.kind == "nvfp4":
            return self.codes.numel() * 4 + self.scales.numel() * 8 + 32 * (1 + (self.input_scale is not None))
        zero_bits = 0 if self.zero_points is None else self.zero_points.numel() * self.scheme.bits
        scales = (1 if self.scheme.per_tensor else self.scales.numel()) + (self.input_scale is not None)
        return self.codes.numel() * self.scheme.bits + scales * 16 + zero_bits


def low_rank_scheme(rank: int) -> Scheme:
    """Of a weight that factors of this rank stand for; 0 where the rank is not known yet."""
    return Scheme(16, None, type="low-rank", rank=rank)


def scheme_of(weight: QuantizedWeight | LowRank) -> Scheme:
    """How a weight that is not in plain floats is stored."""
    return low_rank_scheme(weight.rank) if isinstance(weight, LowRank) else weight.scheme


def stack_rows(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """One weight of the rows of several, which share a scheme. They have no input scale yet, and nothing beside."""
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return QuantizedWeight(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zero_points) if zero_points else None,
        parts[0].scheme,
    )


def split_rows(weight: QuantizedWeight, rows: list[int]) -> list[QuantizedWeight]:
    """The inverse of `stack_rows`: weights of so many rows each."""
    zero_points = [None] * len(rows) if weight.zero_points is None else weight.zero_points.split(rows)
    pieces = zip(weight.codes.split(rows), weight.scales.split(rows), zero_points, strict=True)
    branches = [None] * len(rows) if weight.branch is None else weight.branch.split_rows(rows)
    return [
        QuantizedWeight(*piece, weight.scheme, input_factors=weight.input_factors, branch=branch)
        for piece, branch in zip(pieces, branches, strict=True)
    ]


def shared_scale(scales: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest scales that float16 and bfloat16 both hold exactly, float32 and positive.

    int4 scales stay in float16's normal range, since some kernels flush subnormals; int8 scales are 16 times
    smaller and use the subnormals, where the step of 2^-24 is still finer than their eight significant bits.

    Raises:
        InputError: a scale is beyond what float16 holds.
    """
    if not bool((scales <= LARGEST_SHARED_SCALE).all()):
        raise InputError(f"A weight needs a scale of {float(scales.max()):.3g}, more than float16 holds.")
    floor = FP16_SMALLEST_NORMAL if bits <= 4 else FP16_STEP
    # Each range is rounded once, to the coarser of the two types: twice would miss the nearest in rare ties.
    on_fp16_grid = (scales / FP16_STEP).round() * FP16_STEP
    nearest = torch.where(scales < FP16_COARSER_BELOW, on_fp16_grid, scales.to(torch.bfloat16).float())
    return nearest.clamp(min=floor)


def _bytes(codes: torch.Tensor) -> torch.Tensor:
    return codes.contiguous().view(torch.uint8)


def _equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
