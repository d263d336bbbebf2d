"""Which matrices the graph multiplies by: linears of the checkpoint, alone or packed into one.

The graph builder, the weight writer and nobody else read this; `reader.py` finds its way from the graph itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compressor.architecture import Architecture
from compressor.quantized import Scheme

# onnxruntime's CPU kernel of MatMulNBits takes no other block size, largest first.
BLOCK_SIZES = (256, 128, 64, 32, 16)
# One scale a channel is repeated over blocks of this size where it divides the width: the fastest kernel.
CHANNEL_BLOCK_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Matrix:
    """One matrix multiplication of the graph.

    Attributes:
        name: what its initializers are called after: the linear's module name, or `...self_attn.qkv_proj`.
        parts: module names of the linears it stacks along the output features, all of one scheme.
        rows: out_features of each part.
        columns: in_features.
        scheme: how it is quantized; None is float32.
    """

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    scheme: Scheme | None
    has_bias: bool

    @property
    def block(self) -> int:
        """Block size along the input features that MatMulNBits is given."""
        assert self.scheme is not None
        return block_size(self.scheme, self.columns)


def block_size(scheme: Scheme, columns: int) -> int:
    """The block size that carries `scheme` exactly, its scales repeated over the blocks of a group; 0 is none."""
    if scheme.group_size is None:
        return next((size for size in CHANNEL_BLOCK_SIZES if columns % size == 0), CHANNEL_BLOCK_SIZES[-1])
    return next((size for size in BLOCK_SIZES if scheme.group_size % size == 0), 0)


def block_matrices(architecture: Architecture, schemes: Mapping[str, Scheme], index: int) -> dict[str, Matrix]:
    """Matrices of decoder block `index` by their name within the block, q, k and v in one if they share a scheme."""
    prefix = f"model.layers.{index}."
    shapes = architecture.block_linears(index)
    names = [(name,) for name in shapes]
    qkv = tuple(f"{prefix}self_attn.{x}_proj" for x in "qkv")
    if len({schemes.get(name) for name in qkv}) == 1:
        names = [qkv, *names[3:]]
    biased = architecture.tensor_shapes().keys()
    matrices = (_matrix(parts, shapes, schemes.get(parts[0]), f"{parts[0]}.bias" in biased) for parts in names)
    return {matrix.name.removeprefix(prefix): matrix for matrix in matrices}


def head_matrix(architecture: Architecture, schemes: Mapping[str, Scheme]) -> Matrix:
    """The matrix that makes logits. Tied to the embedding, it is float and called after it."""
    name = "model.embed_tokens" if architecture.tied_embeddings else "lm_head"
    rows = (architecture.vocab_size,)
    return Matrix(name, (name,), rows, architecture.hidden_size, schemes.get(name), has_bias=False)


def all_matrices(architecture: Architecture, schemes: Mapping[str, Scheme]) -> Iterator[Matrix]:
    """Every matrix of the graph in forward order."""
    for index in range(architecture.layers):
        yield from block_matrices(architecture, schemes, index).values()
    yield head_matrix(architecture, schemes)


def _matrix(
    parts: tuple[str, ...], shapes: Mapping[str, tuple[int, int]], scheme: Scheme | None, has_bias: bool
) -> Matrix:
    first = parts[0]
    name = first if len(parts) == 1 else first.removesuffix("q_proj") + "qkv_proj"
    return Matrix(name, parts, tuple(shapes[part][0] for part in parts), shapes[first][1], scheme, has_bias)
