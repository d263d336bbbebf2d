"""Which matrices the graph works with: the embedding, and linears of the checkpoint, alone or packed into one.

The graph builder and the weight writer agree through this. `reader.py` does not import it: it finds its way from the
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.quantized import Scheme

# onnxruntime's CPU kernel of MatMulNBits takes no other block size.
BLOCK_SIZES = (256, 128, 64, 32, 16)
# One scale a channel is repeated over blocks: large ones are faster, and padding is read for nothing.
CHANNEL_PADDING = 1 / 8  # of the width, at most


LOW_RANK_PARTS = (".low_rank_down", ".low_rank_up")  # what factors are called, after their linear
PACKED = "qkv_proj"  # what the matrix is called that q, k and v of a checkpoint are packed into


@dataclass(frozen=True)
class Matrix:
    """A matrix that the graph multiplies by, or looks rows up in.

    Attributes:
        name: module name of the linear; of a packed one, `model.layers.0.self_attn.qkv_proj`.
        parts: module names of the linears it stacks along the output features, all of one scheme.
        rows: out_features of each part.
        columns: in_features.
        scheme: how it is quantized; None is not at all.
        ranks: of the factors of each part, beside the matrix or in its place; empty is none.
        has_base: there is a matrix, and not factors alone.
        has_factors: features are multiplied by numbers of their own before they meet the matrix.
        bias: name of the bias, or "".
        dtype: what it, or its factors, are stored in where they are not quantized.
        is_looked_up: it is the embedding.
        is_multiplied: features are multiplied by it.
    """

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    scheme: Scheme | None
    bias: str = ""
    dtype: torch.dtype = torch.float32
    is_looked_up: bool = False
    is_multiplied: bool = True
    ranks: tuple[int, ...] = ()
    has_base: bool = True
    has_factors: bool = False

    @property
    def weight(self) -> str:
        """Name of the weight; a quantized one is stored under it with a suffix each."""
        return self.name + ".weight"

    @property
    def factors(self) -> str:
        """Name of what the inputs are multiplied by, or ""."""
        return self.name + ".input_factors" if self.has_factors else ""

    @property
    def block(self) -> int:
        """Block size along the input features that MatMulNBits is given."""
        assert self.scheme is not None
        return block_size(self.scheme, self.columns, 0 if self.is_looked_up else CHANNEL_PADDING)


def block_size(scheme: Scheme, columns: int, padding: float) -> int:
    """The largest block size that carries `scheme` exactly, scales repeated over the blocks of a group; 0 is none.

    Args:
        padding: how much longer than `columns` a row of one scale a channel may become, as a part of it.
    """
    if scheme.group_size is None:
        fitting = (size for size in BLOCK_SIZES if -columns % size <= columns * padding)
        return next(fitting, BLOCK_SIZES[-1])
    return next((size for size in BLOCK_SIZES if scheme.group_size % size == 0), 0)


@dataclass(frozen=True)
class Plan:
    """What the graph of one checkpoint is made of.

    Attributes:
        dtypes: of the checkpoint's float parameters, by name.
        compute: dtype of activations, cache, norms and biases.
    """

    architecture: Architecture
    schemes: Mapping[str, Scheme]
    dtypes: Mapping[str, torch.dtype]
    compute: torch.dtype

    @classmethod
    def of(cls, checkpoint: Checkpoint, compute: torch.dtype) -> Plan:
        """The plan for a checkpoint."""
        dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
        return cls(checkpoint.architecture, checkpoint.schemes, dtypes, compute)

    def block(self, index: int) -> dict[str, Matrix]:
        """Matrices of decoder block `index` by their name within it, q, k and v in one if they share a scheme.

        Those whose inputs are multiplied stay apart, for each has factors of its own.
        """
        attention, prefix = self.architecture.modules.attention, self.architecture.modules.block(index)
        shapes = self.architecture.block_linears(index)
        first = tuple(prefix + name for name in attention.first)
        groups = [first] if self._go_together(first) else [(name,) for name in first]
        biased = self.architecture.tensor_shapes().keys()
        matrices = {}
        for parts in (*groups, *((name,) for name in shapes if name not in first)):
            name = f"{prefix}{attention.body}.{PACKED}" if len(parts) > 1 else parts[0]
            bias = name + ".bias" if parts[0] + ".bias" in biased else ""
            rows, columns = tuple(shapes[part][0] for part in parts), shapes[parts[0]][1]
            matrices[name.removeprefix(prefix)] = self._matrix(name, parts, rows, columns, bias)
        return matrices

    def table(self) -> Matrix:
        """The embedding, a row a token."""
        tied = self.architecture.tied_embeddings
        return replace(self._of_vocabulary(self.architecture.embedding), is_looked_up=True, is_multiplied=tied)

    def head(self) -> Matrix:
        """The matrix that makes logits. Tied to the embedding, it is that very tensor."""
        return self.table() if self.architecture.tied_embeddings else self._of_vocabulary("lm_head")

    def _of_vocabulary(self, name: str) -> Matrix:
        return self._matrix(name, (name,), (self.architecture.vocab_size,), self.architecture.hidden_size)

    def _go_together(self, linears: tuple[str, ...]) -> bool:
        """Whether linears can be packed into one: of one scheme, all or none with factors beside."""
        schemes = [self.schemes.get(name) for name in linears]
        kinds = {(scheme.core, scheme.rank > 0) if scheme else None for scheme in schemes}
        apart = any(_is_low_rank(scheme) or (scheme is not None and scheme.input_factors) for scheme in schemes)
        return len(linears) == 1 or (len(kinds) == 1 and not apart)

    def _matrix(self, name: str, parts: tuple[str, ...], rows: tuple[int, ...], columns: int, bias: str = "") -> Matrix:
        schemes = [self.schemes.get(part) for part in parts]
        ranks = tuple(scheme.rank for scheme in schemes if scheme and scheme.rank)
        has_base = not _is_low_rank(schemes[0])
        scheme = schemes[0].core if schemes[0] and has_base else None
        stored = [part + (LOW_RANK_PARTS[0] if ranks else ".weight") for part in parts]
        dtype = self._stored_dtype(stored)
        factors = bool(schemes[0] and schemes[0].input_factors)
        return Matrix(
            name, parts, rows, columns, scheme, bias, dtype, ranks=ranks, has_base=has_base, has_factors=factors
        )

    def _stored_dtype(self, tensors: list[str]) -> torch.dtype:
        """A float32 graph keeps what has 16 bits in the checkpoint as it is, and widens it when it is loaded."""
        if self.compute != torch.float32:
            return self.compute
        found = {self.dtypes.get(name, torch.float32) for name in tensors}
        return found.pop() if len(found) == 1 else torch.float32


def _is_low_rank(scheme: Scheme | None) -> bool:
    return scheme is not None and scheme.type == "low-rank"
