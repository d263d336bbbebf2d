"""A GGUF file's tensors under their Hugging Face names, in the layout that transformers computes with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.gguf.architectures import gain_shift, gguf_names
from compressor.gguf.blocks import BITS, GROUP_SIZES, group_sizes, read_integers
from compressor.gguf.config import ROPE_TENSORS
from compressor.gguf.container import GgufFile, StoredTensor
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_tensors(file: GgufFile, architecture: Architecture) -> None:
    """See that the file holds exactly the tensors of this architecture, in their shapes.

    Raises:
        InputError: it does not; names the first tensor that is missing, unexpected or misshapen.
    """
    names, shapes = gguf_names(architecture), architecture.tensor_shapes()
    expected = {names[parameter]: shape for parameter, shape in shapes.items()}
    for name, shape in expected.items():
        if name not in file.tensors:
            raise InputError(f"{file.path} has no tensor {name}, which its metadata calls for.")
        if file.tensors[name].shape != shape:
            found = list(file.tensors[name].shape)
            raise InputError(f"{file.path}: tensor {name} has shape {found}; its metadata says {list(shape)}.")
    unexpected = sorted(set(file.tensors) - set(expected) - set(ROPE_TENSORS))
    if unexpected:
        raise InputError(f"{file.path}: tensor {unexpected[0]} has no place in a {architecture.model_type} model.")


@dataclass(frozen=True)
class Reading:
    """How the weights of one file are read.

    Attributes:
        stored: where each parameter lies.
        schemes: parameters that are kept as the integers and scales that the file holds.
        dtype: of all others.
    """

    file: GgufFile
    architecture: Architecture
    stored: Mapping[str, StoredTensor] = field(repr=False)
    schemes: Mapping[str, Scheme] = field(repr=False)
    dtype: torch.dtype

    @classmethod
    def of(cls, file: GgufFile, architecture: Architecture, dequantize: bool) -> Reading:
        """Q4_0 and Q8_0 linears are kept, unless all is to be dequantized; floats in the narrowest exact dtype.

        Raises:
            InputError: llmc's note of the group sizes is damaged.
        """
        stored = {parameter: file.tensors[name] for parameter, name in gguf_names(architecture).items()}
        schemes = {} if dequantize else _held(file, stored, architecture)
        reading = cls(file, architecture, stored, schemes, torch.float32)
        return replace(reading, dtype=reading.narrowest_dtype())

    @property
    def dequantized(self) -> dict[str, str]:
        """Parameters that the file holds quantized and that are not kept so, with their type there."""
        kinds = {name: tensor.kind for name, tensor in self.stored.items()}
        return {name: kind for name, kind in kinds.items() if kind not in FLOATS and name not in self.schemes}

    def narrowest_dtype(self) -> torch.dtype:
        """The 16-bit dtype of the file's float matrices where it holds every other float exactly; else float32."""
        floats = {name: tensor for name, tensor in self.stored.items() if name not in self.schemes}
        kinds = Counter(tensor.kind for tensor in floats.values() if len(tensor.shape) > 1)
        # Of GPT-2's positions llama.cpp's converter makes float32, whatever the model was.
        narrow = [kind for kind in kinds if kind in ("F16", "BF16")]
        if len(narrow) != 1 or not set(kinds) <= {"F32", *narrow}:
            return torch.float32
        dtype = FLOATS[narrow[0]]
        others = (self._values(name) for name, tensor in floats.items() if tensor.kind != narrow[0])
        return dtype if all(torch.equal(values.to(dtype).float(), values) for values in others) else torch.float32

    def blocks(self, progress: Progress) -> Iterator[dict[str, Weight]]:
        """Every block's weights in forward order, one block in memory at a time."""
        blocks, what = _blocks(self.architecture), "reading GGUF" if self.schemes else "dequantizing GGUF"
        for number, names in enumerate(blocks):
            progress(what, number, len(blocks))
            yield {name: self._read(name) for name in names}
        progress(what, len(blocks), len(blocks))

    def _read(self, parameter: str) -> Weight:
        stored, scheme = self.stored[parameter], self.schemes.get(parameter)
        if scheme is None:
            return self._values(parameter).to(self.dtype)
        parts = read_integers(self.file, stored.name, scheme.group_width(stored.shape[-1]))
        codes, scales = (torch.from_numpy(self._in_order(parameter, part)) for part in parts)
        return QuantizedWeight(codes, scales, None, scheme)

    def _values(self, parameter: str) -> torch.Tensor:
        """A parameter's numbers, float32 in its shape."""
        values = torch.from_numpy(self._in_order(parameter, _floats(self.file, self.stored[parameter].name)))
        shift = gain_shift(self.architecture, parameter)
        return values - shift if shift else values

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


def _held(file: GgufFile, stored: Mapping[str, StoredTensor], architecture: Architecture) -> dict[str, Scheme]:
    """Schemes of the linears in blocks of integers, and of an embedding that llmc wrote: few runtimes hold one."""
    sizes, widths = group_sizes(file), {f"{name}.weight": shape[1] for name, shape in architecture.linears().items()}
    linears = {name: stored[name] for name in widths if name in stored and stored[name].kind in BITS}
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


def _blocks(architecture: Architecture) -> list[list[str]]:
    """Parameter names of the embedding, of each decoder block, and of the final norm and head."""
    prefixes = (architecture.modules.prefixes(block) for block in architecture.block_names)
    return [[name for name in architecture.tensor_shapes() if name.startswith(prefix)] for prefix in prefixes]


def _floats(file: GgufFile, name: str) -> np.ndarray:
    try:
        return file.read(name)
    except NotImplementedError as error:
        kind = file.tensors[name].kind
        raise InputError(f"{file.path}: tensor {name} is {kind}, which cannot be dequantized.") from error
