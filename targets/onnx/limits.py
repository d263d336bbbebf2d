"""What onnxruntime and the graph cannot hold, each with what works."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from compressor.architecture import Architecture
from compressor.quantized import Scheme
from targets.onnx.plan import BLOCK_SIZES, block_size

HEAD_DIM_STEP = 8
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# Rules whose tables do not depend on how long the text is.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def shape_problems(architecture: Architecture) -> Iterator[str]:
    """Why a model of this shape cannot be expressed."""
    yield from graph_problems(architecture)
    if architecture.head_dim % HEAD_DIM_STEP:
        yield (
            f"onnxruntime's attention takes a head_dim that is a multiple of {HEAD_DIM_STEP}, "
            f"not {architecture.head_dim}; choose target hf."
        )


def graph_problems(architecture: Architecture) -> Iterator[str]:
    """Why neither graph can express a model of this shape."""
    if architecture.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        yield f"The ONNX graph knows the activations {known}, not {architecture.activation}; choose target hf."
    for rope_type in set(architecture.rope_types).difference(ROPE_TYPES):
        yield (
            f"Rotary scaling {rope_type!r} changes with the length of the text, which a stored table "
            "cannot follow; choose target hf."
        )


def group_problems(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Why groups of this size cannot be held."""
    smallest = BLOCK_SIZES[-1]
    odd = [name for name, scheme in schemes.items() if scheme.group_size and scheme.group_size % smallest]
    if odd:
        yield (
            f"onnxruntime takes groups of a multiple of {smallest}, and {have(odd)} "
            f"group_size={schemes[odd[0]].group_size}; use group_size=32, 64 or 128."
        )


def table_problems(architecture: Architecture, scheme: Scheme) -> Iterator[str]:
    """Why the embedding cannot be looked up as it is quantized."""
    if scheme.type != "int" or scheme.activations is not None:
        yield f"onnxruntime looks up int4 and int8 embeddings, not {scheme}; choose target hf."
        return
    yield from group_problems({architecture.embedding: scheme})
    block = block_size(scheme, architecture.hidden_size, padding=0)
    # A row of the head would be padded, and the embedding has the same bytes.
    if block and architecture.hidden_size % block:
        yield (
            f"onnxruntime takes a quantized embedding of a width that is a multiple of {block}, "
            f"not {architecture.hidden_size}; leave out the pass embeddings."
        )


def by_kind(schemes: Mapping[str, Scheme]) -> dict[str, list[str]]:
    """Names of the layers of each kind of weights."""
    names = defaultdict(list)
    for name, scheme in schemes.items():
        names[f"{scheme.kind} and {scheme.activations}" if scheme.activations else scheme.kind].append(name)
    return names


def have(names: list[str]) -> str:
    """`lm_head has`, or `lm_head and 3 more have`."""
    return f"{names[0]} and {len(names) - 1} more have" if len(names) > 1 else f"{names[0]} has"
