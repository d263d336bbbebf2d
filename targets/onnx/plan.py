"""Which matrices the graph multiplies by: linears of the checkpoint, alone or packed into one.

The graph builder and the weight writer agree through this. `reader.py` does not import it: it finds its way from the
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.architecture import Architecture
from compressor.quantized import Scheme

# onnxruntime's CPU kernel of MatMulNBits takes no other block size.
BLOCK_SIZES = (256, 128, 64, 32, 16)
# One scale a channel is repeated over blocks of the first size that divides the width, or of the last, padded.
CHANNEL_BLOCK_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Matrix:
    """One matrix multiplication of the graph.

    Attributes:
        name: module name of the linear; of a packed one, `model.layers.0.self_attn.qkv_proj`.
        parts: module names of the linears it stacks along the output features, all of one scheme.
        rows: out_features of each part.
        columns: in_features.
        scheme: how it is quantized; None is float32.
        bias: name of the bias, or "".
    """

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    scheme: Scheme | None
    bias: str = ""

    @property
    def weight(self) -> str:
        """Name of the weight; a quantized one is stored under it with a suffix each."""
        return self.name + ".weight"

    @property
    def block(self) -> int:
        """Block size along the input features that MatMulNBits is given."""
        assert self.scheme is not None
        return block_size(self.scheme, self.columns)


def block_size(scheme: Scheme, columns: int) -> int:
    """The largest block size that carries `scheme` exactly, scales repeated over the blocks of a group; 0 is none."""
    if scheme.group_size is None:
        return next((size for size in CHANNEL_BLOCK_SIZES if columns % size == 0), CHANNEL_BLOCK_SIZES[-1])
    return next((size for size in BLOCK_SIZES if scheme.group_size % size == 0), 0)


def block_matrices(architecture: Architecture, schemes: Mapping[str, Scheme], index: int) -> dict[str, Matrix]:
    """Matrices of decoder block `index` by their name within the block, q, k and v in one if they share a scheme."""
    prefix = f"model.layers.{index}."
    shapes = architecture.block_linears(index)
    query, key, value, *others = shapes
    is_uniform = len({schemes.get(name) for name in (query, key, value)}) == 1
    groups = [(query, key, value)] if is_uniform else [(query,), (key,), (value,)]
    biased = architecture.tensor_shapes().keys()
    matrices = {}
    for parts in (*groups, *((name,) for name in others)):
        name = prefix + "self_attn.qkv_proj" if len(parts) == 3 else parts[0]
        rows, columns = tuple(shapes[part][0] for part in parts), shapes[parts[0]][1]
        bias = name + ".bias" if parts[0] + ".bias" in biased else ""
        matrices[name.removeprefix(prefix)] = Matrix(name, parts, rows, columns, schemes.get(parts[0]), bias)
    return matrices


def head_matrix(architecture: Architecture, schemes: Mapping[str, Scheme]) -> Matrix:
    """The matrix that makes logits. Tied to the embedding, it is that very tensor."""
    name = "model.embed_tokens" if architecture.tied_embeddings else "lm_head"
    return Matrix(name, (name,), (architecture.vocab_size,), architecture.hidden_size, schemes.get(name))
