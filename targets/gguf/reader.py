"""Reads a GGUF file through the `gguf` package: its parser, its table of tensor names, its dequantizer.

Nothing of the writing side is used. Codes are what the library's dequantizer gives when every scale is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme

READER = "gguf"
ROWS_AT_ONCE = 4096  # of a tensor being dequantized, which takes four bytes an element
BITS = {"Q4_0": 4, "Q8_0": 8}
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<i2"}
NOT_PARAMETERS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Names:
    """What checkpoints call their modules: those beside the decoder blocks, the blocks, and those within one."""

    top: tuple[str, ...]
    blocks: str
    inner: tuple[str, ...]

    def of(self, layers: int) -> list[str]:
        """Every module of a model with so many layers, as far as it has them."""
        return [*self.top, *(f"{self.blocks}.{index}.{name}" for index in range(layers) for name in self.inner)]


COMMON = Names(
    ("model.embed_tokens", "model.norm", "lm_head"),
    "model.layers",
    ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
     "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm", "pre_feedforward_layernorm",
     "post_feedforward_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)  # fmt: skip
# Those of architectures that are called otherwise.
NAMES = {
    "phi3": Names(
        COMMON.top,
        COMMON.blocks,
        ("input_layernorm", "self_attn.qkv_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_up_proj",
         "mlp.down_proj"),
    ),
    "gpt2": Names(
        ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
        "transformer.h",
        ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: where its bytes are and what they mean. `shape` is in the order of torch."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    group_size: int
    heads: int | None  # of a projection whose rows were reordered within each head

    def read(self) -> Weight:
        """The weight in the layout of a checkpoint."""
        order = None if self.heads is None else _row_order(self.shape[0], self.heads)
        if self.kind in BITS:
            return self._quantized(order)
        values = np.fromfile(self.path, FLOATS[self.kind], math.prod(self.shape), offset=self.offset)
        tensor = torch.from_numpy(values.reshape(self.shape))
        tensor = tensor.view(torch.bfloat16) if self.kind == "BF16" else tensor
        return tensor if order is None else tensor[order]

    def _quantized(self, order: torch.Tensor | None) -> QuantizedWeight:
        raw = np.fromfile(self.path, np.uint8, self.nbytes, offset=self.offset).reshape(self.shape[0], -1)
        codes = np.empty(self.shape, np.int8)
        scales = np.empty((self.shape[0], self.shape[1] // 32), np.float32)
        for start in range(0, len(raw), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            codes[rows], scales[rows] = _decoded(raw[rows], self.kind)
        found = torch.from_numpy(codes), torch.from_numpy(_without_repeats(scales, self.group_size))
        if order is not None:
            found = found[0][order], found[1][order]
        groups = found[1].shape[1]
        group_size = None if groups == 1 else self.shape[1] // groups
        return QuantizedWeight(*found, None, Scheme(BITS[self.kind], group_size))


def read_file(path: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of the file by its parameter name in a Hugging Face folder, one at a time.

    A name that no parameter has is given as the file has it.

    Raises:
        RunError: the file lacks metadata that the target writes.
    """
    for name, entry in _entries(path).items():
        yield name, entry.read()


def _entries(path: Path) -> dict[str, Entry]:
    """The header, read whole and given back as little: the library maps the file and keeps an object a token."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    architecture = _field(reader, "general.architecture")
    names = _parameter_names(architecture, _field(reader, f"{architecture}.block_count"))
    group_sizes = _field(reader, "llmc.group_sizes")
    heads: dict[str, int] = {}
    if architecture == "llama":
        heads = {f"attn_{x}": _field(reader, f"llama.attention.head_count{kv}") for x, kv in (("q", ""), ("k", "_kv"))}
    found = {}
    for tensor, group_size in zip(reader.tensors, group_sizes, strict=True):
        if tensor.name in NOT_PARAMETERS:
            continue
        module, _, part = tensor.name.rpartition(".")
        name = f"{names[module]}.{part}" if module in names else tensor.name
        shape = tuple(int(size) for size in reversed(tensor.shape))
        place = int(tensor.data_offset), int(tensor.n_bytes)
        paired = heads.get(module.rpartition(".")[2])
        found[name] = Entry(path, tensor.tensor_type.name, shape, *place, group_size, paired)
    return found


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise RunError(f"The GGUF file has no {key}, which llmc writes.")
    return field.contents()


def _parameter_names(architecture: str, layers: int) -> dict[str, str]:
    """llama.cpp's name of every module to that in a checkpoint, by the library's own table."""
    import gguf

    (kind,) = (kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, layers)
    modules = NAMES.get(architecture, COMMON).of(layers)
    return {found: module for module in modules if (found := table.get_name(module)) is not None}


def _decoded(raw: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, in_features] and scales [rows, blocks] of some rows of bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    quantized = GGMLQuantizationType[kind]
    blocks = raw.reshape(len(raw), -1, GGML_QUANT_SIZES[quantized][1]).copy()
    scales = blocks[..., :2].copy().view("<f2")[..., 0].astype(np.float32)
    blocks[..., :2] = np.ones(1, "<f2").view(np.uint8)
    return dequantize(blocks.reshape(raw.shape), quantized).astype(np.int8), scales


def _without_repeats(scales: np.ndarray, group_size: int) -> np.ndarray:
    """One scale a group; all of them where a group's blocks do not agree, which then equals no checkpoint's."""
    grouped = scales.reshape(len(scales), -1, group_size // 32)
    first = grouped[..., :1]
    agree = bool((grouped.view(np.int32) == first.view(np.int32)).all())
    return np.ascontiguousarray(first[..., 0]) if agree else scales


def _row_order(rows: int, heads: int) -> torch.Tensor:
    """Where the rows of a checkpoint's projection lie in the file, which has rotary pairs side by side."""
    within = torch.arange(rows // heads)
    half = len(within) // 2
    places = torch.where(within < half, 2 * within, 2 * (within - half) + 1)
    return (torch.arange(heads).unsqueeze(1) * len(within) + places).reshape(-1)
