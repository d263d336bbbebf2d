"""Writes the one file: header first, then every tensor as it is read, a block of the model in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.end_tokens import EndTokens
from compressor.errors import InputError
from compressor.gguf.architectures import gain_shift, gguf_names
from compressor.gguf.blocks import GROUP_SIZES
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from compressor.tokenizer import load_tokenizer, template_notes
from targets.casting import Caster
from targets.gguf.metadata import OF_FAMILY, add_metadata, rope_tensors
from targets.gguf.tokenizer import check_tokenizer, describe_tokenizer, edge_notes, end_keys, lost_ends
from targets.packing.gguf_blocks import BLOCK, pack_blocks


@dataclass(frozen=True)
class Stored:
    """How one tensor lies in the file. `kind` is the name of its type in gguf's GGMLQuantizationType."""

    name: str
    kind: str
    shape: tuple[int, ...]
    group_size: int = 0

    @property
    def nbytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return math.prod(self.shape) // elements * size


def is_float32(architecture: Architecture, name: str, dimensions: int) -> bool:
    """Whether llama.cpp wants an unquantized parameter in float32: norms, biases, and learned positions."""
    return dimensions == 1 or name == f"{architecture.modules.positions}.weight"


def block_kind(scheme: Scheme) -> str:
    """The type whose blocks hold a scheme's codes."""
    return f"Q{scheme.bits}_0"


def write_file(path: Path, checkpoint: Checkpoint, caster: Caster, file_type: str, progress: Progress) -> list[str]:
    """Write a checkpoint to `path`; notes say what of its tokenizer has no place there.

    Raises:
        InputError: its tokenizer or its rope scaling cannot be described, or a scale is not exact in float16.
    """
    import gguf

    writer = gguf.GGUFWriter(path, OF_FAMILY[checkpoint.architecture.model_type].name)
    try:
        add_metadata(writer, checkpoint, file_type)
        notes = _add_tokenizer(writer, checkpoint)
        factors = rope_tensors(checkpoint)
        _add_tensors(writer, _plan(checkpoint, caster.dtype, factors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in factors.values():
            writer.write_tensor_data(tensor.numpy())
        for data in _stream(checkpoint, caster, progress):
            writer.write_tensor_data(data)
    finally:
        writer.close()
    return notes


def _add_tokenizer(writer: Any, checkpoint: Checkpoint) -> list[str]:
    """Describe the tokenizer, and say what of it the file does not hold."""
    tokenizer = load_tokenizer(checkpoint.root)
    described = describe_tokenizer(tokenizer, checkpoint.architecture.vocab_size)
    ends = EndTokens.of(checkpoint.root, tokenizer).ids
    for key, value in (described | end_keys(ends, tokenizer.eos_token_id)).items():
        _add_value(writer, key, value)
    metadata = {key: entry.value for key, entry in writer.kv_data[0].items()}
    check_tokenizer(metadata, tokenizer)
    return [*lost_ends(ends, tokenizer), *edge_notes(metadata, tokenizer), *template_notes(tokenizer)]


def _add_value(writer: Any, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
    adders[type(value)](key, value)


def _plan(checkpoint: Checkpoint, dtype: torch.dtype, factors: Mapping[str, torch.Tensor]) -> Iterator[Stored]:
    """Every tensor in the order in which its data will come."""
    for name, tensor in factors.items():
        yield Stored(name, "F32", tuple(tensor.shape))
    names, architecture = gguf_names(checkpoint.architecture), checkpoint.architecture
    wide = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    for name, shape in checkpoint.parameters.items():
        scheme = checkpoint.schemes.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if scheme is None:
            yield Stored(names[name], "F32" if is_float32(architecture, name, len(shape)) else wide, shape)
        elif shape[-1] % BLOCK:
            raise InputError(f"{name} has rows of {shape[-1]}, no whole blocks of {BLOCK}.", "Leave it float.")
        else:
            yield Stored(names[name], block_kind(scheme), shape, scheme.group_width(shape[-1]))


def _add_tensors(writer: Any, plan: Iterator[Stored]) -> None:
    from gguf import GGMLQuantizationType

    group_sizes = []
    for stored in plan:
        kind = GGMLQuantizationType[stored.kind]
        writer.add_tensor_info(stored.name, stored.shape, np.dtype(np.float32), stored.nbytes, raw_dtype=kind)
        group_sizes.append(stored.group_size)
    writer.add_array(GROUP_SIZES, group_sizes)


def _stream(checkpoint: Checkpoint, caster: Caster, progress: Progress) -> Iterator[np.ndarray]:
    orders = _row_orders(checkpoint)
    total = len(checkpoint.block_names)
    for done, block in enumerate(checkpoint.blocks(), start=1):
        for name in list(block.weights):
            data = _stored_bytes(checkpoint.architecture, name, block.weights.pop(name), caster)
            projection = name.split(".")[-2]
            yield (data[orders[projection]] if projection in orders else data).numpy()
        progress("writing", done, total)


def _stored_bytes(architecture: Architecture, name: str, weight: Weight, caster: Caster) -> torch.Tensor:
    """What lies in the file for a weight, row by row; bfloat16, which numpy does not have, as its bits."""
    if isinstance(weight, QuantizedWeight):
        return _blocks(name, weight)
    assert isinstance(weight, torch.Tensor)  # factors are refused
    if is_float32(architecture, name, weight.dim()):
        return weight.float() + gain_shift(architecture, name)
    served = caster.tensor(name, weight).contiguous()
    return served.view(torch.int16) if served.dtype == torch.bfloat16 else served


def _blocks(name: str, weight: QuantizedWeight) -> torch.Tensor:
    try:
        return pack_blocks(weight.codes, weight.scales, weight.scheme.bits)
    except ValueError as error:
        raise InputError(
            f"{name} cannot be laid out in blocks of {BLOCK}: {error}.",
            "Quantize the float checkpoint with llmc, whose scales float16 holds.",
        ) from error


def _row_orders(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    """Where the rows of q and k come from in a llama file, whose rotary pairs are neighbours instead of halves."""
    shape = checkpoint.architecture
    if OF_FAMILY[shape.model_type].name != "llama":
        return {}
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}
    return {
        name: torch.arange(count * shape.head_dim).view(count, 2, -1).transpose(1, 2).reshape(-1)
        for name, count in heads.items()
    }
