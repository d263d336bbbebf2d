"""A GGUF file's tensors under their Hugging Face names, in the layout that transformers computes with."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch

from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.gguf.config import ROPE_FREQS
from compressor.gguf.container import GgufFile
from compressor.pass_ import Progress

TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(parameter: str) -> str:
    """llama.cpp's name of a Hugging Face parameter."""
    module, _, kind = parameter.rpartition(".")
    if match := BLOCK.fullmatch(module):
        return f"blk.{match[1]}.{IN_BLOCK[match[2]]}.{kind}"
    return f"{TOP[module]}.{kind}"


def check_tensors(file: GgufFile, architecture: Architecture) -> None:
    """See that the file holds exactly the tensors of this architecture, in their shapes.

    Raises:
        InputError: it does not; names the first tensor that is missing, unexpected or misshapen.
    """
    expected = {gguf_name(name): shape for name, shape in architecture.tensor_shapes().items()}
    for name, shape in expected.items():
        if name not in file.tensors:
            raise InputError(f"{file.path} has no tensor {name}, which its metadata calls for.")
        if file.tensors[name].shape != shape:
            found = list(file.tensors[name].shape)
            raise InputError(f"{file.path}: tensor {name} has shape {found}; its metadata says {list(shape)}.")
    unexpected = sorted(set(file.tensors) - set(expected) - {ROPE_FREQS})
    if unexpected:
        raise InputError(f"{file.path}: tensor {unexpected[0]} has no place in a {architecture.model_type} model.")


def read_blocks(file: GgufFile, architecture: Architecture, progress: Progress) -> Iterator[dict[str, torch.Tensor]]:
    """Every block's weights in forward order, dequantized to float32, one block in memory at a time."""
    blocks = _blocks(architecture)
    for number, names in enumerate(blocks):
        progress("dequantizing GGUF", number, len(blocks))
        yield {name: torch.from_numpy(_read(file, name, architecture)) for name in names}
    progress("dequantizing GGUF", len(blocks), len(blocks))


def _blocks(architecture: Architecture) -> list[list[str]]:
    """Parameter names of the embedding, of each decoder block, and of the final norm and head."""
    grouped: dict[str, list[str]] = {}
    for name in architecture.tensor_shapes():
        match = BLOCK.match(name)
        grouped.setdefault(match[1] if match else name.partition("embed_tokens")[1], []).append(name)
    return list(grouped.values())


def _read(file: GgufFile, parameter: str, architecture: Architecture) -> np.ndarray:
    name = gguf_name(parameter)
    try:
        values = file.read(name)
    except NotImplementedError as error:
        raise InputError(
            f"{file.path}: tensor {name} is {file.tensors[name].kind}, which cannot be dequantized."
        ) from error
    if file.metadata["general.architecture"] == "llama" and ("q_proj" in parameter or "k_proj" in parameter):
        heads = architecture.heads if "q_proj" in parameter else architecture.kv_heads
        values = half_rotated(values, heads)
    return np.ascontiguousarray(values, dtype=np.float32)


def half_rotated(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection [heads * head_dim, ...] reordered within each head from rotary pairs to halves.

    llama.cpp turns neighbours (0,1), (2,3) ... of a llama head; transformers turns i and i + head_dim / 2.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
