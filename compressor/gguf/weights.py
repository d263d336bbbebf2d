"""A GGUF file's tensors under their Hugging Face names, in the layout that transformers computes with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.gguf.blocks import BITS, GROUP_SIZES, group_sizes, read_integers
from compressor.gguf.config import ROPE_FREQS
from compressor.gguf.container import GgufFile
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme

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
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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


@dataclass(frozen=True)
class Reading:
    """How the weights of one file are read.

    Attributes:
        schemes: parameters that are kept as the integers and scales that the file holds.
        dtype: of all others.
    """

    file: GgufFile
    architecture: Architecture
    schemes: Mapping[str, Scheme] = field(repr=False)
    dtype: torch.dtype

    @classmethod
    def of(cls, file: GgufFile, architecture: Architecture, dequantize: bool) -> Reading:
        """Q4_0 and Q8_0 linears are kept, unless all is to be dequantized; floats in the narrowest exact dtype.

        Raises:
            InputError: llmc's note of the group sizes is damaged.
        """
        schemes = {} if dequantize else _held(file, architecture)
        floats = [name for name in architecture.tensor_shapes() if name not in schemes]
        return cls(file, architecture, schemes, _float_dtype(file, floats))

    @property
    def dequantized(self) -> dict[str, str]:
        """Parameters that the file holds quantized and that are not kept so, with their type there."""
        kinds = {name: self.file.tensors[gguf_name(name)].kind for name in self.architecture.tensor_shapes()}
        return {name: kind for name, kind in kinds.items() if kind not in FLOATS and name not in self.schemes}

    def blocks(self, progress: Progress) -> Iterator[dict[str, Weight]]:
        """Every block's weights in forward order, one block in memory at a time."""
        blocks, what = _blocks(self.architecture), "reading GGUF" if self.schemes else "dequantizing GGUF"
        for number, names in enumerate(blocks):
            progress(what, number, len(blocks))
            yield {name: self._read(name) for name in names}
        progress(what, len(blocks), len(blocks))

    def _read(self, parameter: str) -> Weight:
        name, scheme = gguf_name(parameter), self.schemes.get(parameter)
        if scheme is None:
            return torch.from_numpy(self._in_order(parameter, _floats(self.file, name))).to(self.dtype)
        width = scheme.group_width(self.file.tensors[name].shape[-1])
        codes, scales = (
            torch.from_numpy(self._in_order(parameter, part)) for part in read_integers(self.file, name, width)
        )
        return QuantizedWeight(codes, scales, None, scheme)

    def _in_order(self, parameter: str, rows: np.ndarray) -> np.ndarray:
        if self.file.metadata["general.architecture"] == "llama" and ("q_proj" in parameter or "k_proj" in parameter):
            rows = half_rotated(rows, self.architecture.heads if "q_proj" in parameter else self.architecture.kv_heads)
        return np.ascontiguousarray(rows)


def half_rotated(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection [heads * head_dim, ...] reordered within each head from rotary pairs to halves.

    llama.cpp turns neighbours (0,1), (2,3) ... of a llama head; transformers turns i and i + head_dim / 2.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _held(file: GgufFile, architecture: Architecture) -> dict[str, Scheme]:
    """Schemes of the linears in blocks of integers, and of an embedding that llmc wrote: few runtimes hold one."""
    sizes, widths = group_sizes(file), {f"{name}.weight": shape[1] for name, shape in architecture.linears().items()}
    stored = {name: file.tensors[gguf_name(name)] for name in widths if gguf_name(name) in file.tensors}
    linears = {name: tensor for name, tensor in stored.items() if tensor.kind in BITS}
    # A group as wide as the input is a channel's only where it is so for every layer of that type.
    grouped = {one.kind for name, one in linears.items() if sizes[one.name] != widths[name]}
    schemes = {
        name: Scheme(BITS[one.kind], sizes[one.name] if one.kind in grouped else None) for name, one in linears.items()
    }
    table = file.tensors["token_embd.weight"]
    if table.kind in BITS and GROUP_SIZES in file.metadata:
        size = sizes[table.name]
        schemes[f"{architecture.embedding}.weight"] = Scheme(
            BITS[table.kind], None if size == table.shape[-1] else size, table=True
        )
    return schemes


def _float_dtype(file: GgufFile, parameters: list[str]) -> torch.dtype:
    """The 16-bit dtype of the file's float matrices where it holds every other float exactly; else float32."""
    tensors = [file.tensors[gguf_name(name)] for name in parameters]
    kinds = Counter(tensor.kind for tensor in tensors if len(tensor.shape) > 1)
    if len(kinds) != 1 or (kind := next(iter(kinds))) not in ("F16", "BF16"):
        return torch.float32
    others = (torch.from_numpy(file.read(tensor.name)) for tensor in tensors if tensor.kind != kind)
    exact = all(torch.equal(values.to(FLOATS[kind]).float(), values) for values in others)
    return FLOATS[kind] if exact else torch.float32


def _blocks(architecture: Architecture) -> list[list[str]]:
    """Parameter names of the embedding, of each decoder block, and of the final norm and head."""
    grouped: dict[str, list[str]] = {}
    for name in architecture.tensor_shapes():
        match = BLOCK.match(name)
        grouped.setdefault(match[1] if match else name.partition("embed_tokens")[1], []).append(name)
    return list(grouped.values())


def _floats(file: GgufFile, name: str) -> np.ndarray:
    try:
        return file.read(name)
    except NotImplementedError as error:
        kind = file.tensors[name].kind
        raise InputError(f"{file.path}: tensor {name} is {kind}, which cannot be dequantized.") from error
