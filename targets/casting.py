"""The 16-bit dtype that a runtime serves a model in: which one, the cast to it, and what config.json says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from compressor.checkpoint import Checkpoint, Weight
from compressor.errors import InputError
from compressor.quantized import QuantizedWeight

ServedDtype = Literal["auto", "float16", "bfloat16"]
DTYPE_HELP = (
    "dtype of what stays unquantized; auto keeps a 16-bit one and makes float32 bfloat16, which cannot overflow"
)

BFLOAT16_WORKS = "dtype=bfloat16 works."
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float16` as config.json spells it."""
    return str(dtype).removeprefix("torch.")


def cast_dtype(choice: ServedDtype | Literal["float32"], stored: torch.dtype) -> torch.dtype:
    """The dtype that a tensor stored in `stored` gets."""
    if choice != "auto":
        return _DTYPES[choice]
    return torch.bfloat16 if stored == torch.float32 else stored


def cast(choice: ServedDtype, weight: Weight) -> Weight:
    """The declared cast of a weight; integers and scales stay what they are."""
    return weight.to(cast_dtype(choice, weight.dtype)) if isinstance(weight, torch.Tensor) else weight


def float_problems(
    choice: ServedDtype, checkpoint: Checkpoint, floats: Sequence[str], remedy: str = BFLOAT16_WORKS
) -> Iterator[str]:
    """Why the parameters `floats` have no common dtype, or are beyond float16; they are read for that only."""
    if not floats:
        return
    try:
        served = _common_dtype(choice, (checkpoint.tensors[name].dtype for name in floats))
    except InputError as error:
        yield f"{error} {error.hint}"
        return
    for name in floats if served == torch.float16 else ():
        if checkpoint.tensors[name].dtype == served:
            continue
        (tensor,) = checkpoint.read([name]).values()
        assert isinstance(tensor, torch.Tensor)
        if sentence := _overflow(name, tensor, tensor.to(served)):
            yield f"{sentence} {remedy}"


def scale_problems(checkpoint: Checkpoint, held_in: torch.dtype, remedy: str) -> Iterator[str]:
    """Which layer that is quantized already has scales that a dtype would round; the first of them."""
    for layer in layers_with_other_scales(checkpoint, held_in):
        yield f"The scales of {layer} are not exact in {dtype_name(held_in)}, in which they are held. {remedy}"
        return


def layers_with_other_scales(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[str]:
    """The layers, quantized already, of which a dtype does not hold all scales as they are."""
    for layer, scheme in checkpoint.schemes.items():
        if scheme.kind not in ("nf4", "nvfp4") and not _is_exact(checkpoint.scales(layer), dtype):
            yield layer


def layer_with_scales_beyond(checkpoint: Checkpoint, dtype: torch.dtype) -> str | None:
    """The first layer, quantized already, of which a dtype makes a scale infinite."""
    integers = (layer for layer, scheme in checkpoint.schemes.items() if scheme.type == "int")
    return next((one for one in integers if bool(checkpoint.scales(one).to(dtype).isinf().any())), None)


def factor_problems(checkpoint: Checkpoint, held_in: torch.dtype, remedy: str) -> Iterator[str]:
    """Which layer has factors of its inputs that a dtype would round; the first of them."""
    for layer, scheme in checkpoint.schemes.items():
        factors = checkpoint.input_factors(layer) if scheme.input_factors else None
        if factors is not None and not _is_exact(factors, held_in):
            yield (
                f"The factors of the inputs of {layer} are not exact in {dtype_name(held_in)}, in which they are held. "
                f"{remedy}"
            )
            return


def other_dtype(dtype: torch.dtype) -> str:
    """What to try where scales are not exact in one of the two 16-bit dtypes."""
    return f"Try dtype={dtype_name(other_half(dtype))}, or the target hf."


def other_half(dtype: torch.dtype) -> torch.dtype:
    """float16 for bfloat16, and the other way round."""
    return torch.float16 if dtype == torch.bfloat16 else torch.bfloat16


def float16_scales(layer: str, weight: QuantizedWeight) -> torch.Tensor:
    """The scales as GPTQ and AWQ folders hold them, whatever the model's dtype: float16 [groups, out_features].

    Raises:
        InputError: float16 would round one.
    """
    scales = weight.scales.T.contiguous()
    narrow = scales.half()
    if not torch.equal(narrow.float(), scales):
        raise InputError(
            f"The scales of {layer} are not exact in float16, in which this format stores them.",
            "The target hf keeps them, and so does quantizing the float checkpoint with llmc, whose scales fit.",
        )
    return narrow


def _is_exact(values: torch.Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values.to(dtype).float(), values)


def _overflow(name: str, tensor: torch.Tensor, served: torch.Tensor) -> str | None:
    """Which value the cast of `tensor` to `served` made infinite, in a sentence."""
    # Extremes rather than masks, which would be as large as the embedding itself.
    low, high = torch.aminmax(served)
    if not bool(torch.isinf(low)) and not bool(torch.isinf(high)):
        return None
    value = float(tensor.min() if bool(torch.isinf(low)) else tensor.max())
    return f"{name} holds {value:.3g}, which {dtype_name(served.dtype)} does not reach."


class Caster:
    """Casts the unquantized tensors of one checkpoint and counts what it did.

    Args:
        remedy: what works where a value is beyond the dtype.

    Raises:
        InputError: `choice` is auto, and the checkpoint's tensors would end in two different dtypes.
    """

    def __init__(
        self,
        choice: ServedDtype | Literal["float32"],
        checkpoint: Checkpoint,
        remedy: str = BFLOAT16_WORKS,
    ) -> None:
        self.dtype, self._remedy = _common_dtype(choice, _float_dtypes(checkpoint)), remedy
        self._casts: Counter[torch.dtype] = Counter()
        self._flushed = 0

    def tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in the served dtype.

        Raises:
            InputError: a value is beyond what the dtype holds.
        """
        if tensor.dtype == self.dtype:
            return tensor
        served = tensor.to(self.dtype)
        if sentence := _overflow(name, tensor, served):
            raise InputError(sentence, self._remedy)
        self._casts[tensor.dtype] += 1
        self._flushed += int(torch.count_nonzero(tensor) - torch.count_nonzero(served))
        return served

    def check_scales(self, name: str, weight: QuantizedWeight) -> None:
        """Scales are multiplied in the served dtype, so it must hold each of them exactly.

        Raises:
            InputError: it does not.
        """
        if not torch.equal(weight.scales.to(self.dtype).float(), weight.scales):
            other = "float16" if self.dtype == torch.bfloat16 else "bfloat16"
            raise InputError(
                f"The scales of {name} are not exact in {dtype_name(self.dtype)}, in which they are served.",
                f"Try dtype={other}, or quantize the float checkpoint with llmc, whose scales fit both.",
            )

    @property
    def notes(self) -> list[str]:
        """One sentence for each kind of cast that happened."""
        served = dtype_name(self.dtype)
        notes = [
            f"{count} unquantized tensors cast {dtype_name(stored)} -> {served}"
            for stored, count in self._casts.items()
        ]
        return [*notes, f"{self._flushed} values became zero in {served}"] if self._flushed else notes


def served_config(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """config.json without its quantization, in the spelling of transformers 5 and in that of 4.

    TensorRT-LLM 1.2 pins transformers 4.57, which would put a default of its own in the place of a rotary base,
    tying or dtype that it does not find under its old name.
    """
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    config |= {"dtype": dtype_name(dtype), "torch_dtype": dtype_name(dtype)}
    config["architectures"] = [checkpoint.architecture.class_name]
    config["tie_word_embeddings"] = checkpoint.architecture.tied_embeddings
    return config | _legacy_rope(config)


def _legacy_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope and "sliding_attention" in rope:  # Gemma 3, which scales the first only
        local = {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
        return local | _legacy_rope({"rope_parameters": rope["full_attention"]})
    if "rope_theta" not in rope:
        return {}
    partial = {key: rope[key] for key in ("partial_rotary_factor",) if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", *partial)}
    is_plain = rope.get("rope_type") == "default"
    return {"rope_theta": rope["rope_theta"], "rope_scaling": None if is_plain else scaling, **partial}


def _float_dtypes(checkpoint: Checkpoint) -> Iterator[torch.dtype]:
    """Dtypes of all parameters that are not quantized."""
    # Codes that are stored as they are lie under the name of the weight.
    codes = {f"{layer}.weight" for layer in checkpoint.schemes}
    parameters = checkpoint.architecture.tensor_shapes().keys() - codes
    return (checkpoint.tensors[name].dtype for name in parameters if name in checkpoint.tensors)


def _common_dtype(choice: ServedDtype | Literal["float32"], stored: Iterable[torch.dtype]) -> torch.dtype:
    floating = set(stored)
    served = {cast_dtype(choice, dtype) for dtype in floating}
    if len(served) > 1:
        kinds = " and ".join(sorted(dtype_name(dtype) for dtype in floating))
        raise InputError(
            f"The checkpoint mixes {kinds}, so that dtype=auto has no answer.", "dtype=bfloat16 or dtype=float16 works."
        )
    return served.pop()
