"""Builds the decoder graph: nodes, inputs and outputs. Weights are named here and written by `weights.py`.

The operators are those that onnxruntime fuses decoders into (GroupQueryAttention, MatMulNBits,
SkipSimplifiedLayerNormalization), written down directly, so that nothing depends on a pattern being recognised.
Operators: microsoft/onnxruntime, docs/ContribOperators.md. Names of inputs and outputs: those of optimum and
onnxruntime-genai.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from compressor.architecture import Architecture
from compressor.quantized import Scheme
from targets.onnx.plan import Matrix, block_matrices, head_matrix

OPSET = 21
IR_VERSION = 10  # the first whose nodes carry metadata
CONTRIB = "com.microsoft"
CONTRIB_OPERATORS = {
    "FusedMatMul",
    "GroupQueryAttention",
    "MatMulNBits",
    "RotaryEmbedding",
    "SkipSimplifiedLayerNormalization",
}
# GroupQueryAttention rotates heads of a multiple of this size itself; others are rotated before it.
ROTATED_INSIDE = 16
# Added to the score of a padding position. Finite, since a row that is all padding would turn into NaN.
LOWEST = float(np.finfo(np.float32).min)

EMBEDDING = "model.embed_tokens.weight"
COSINES, SINES = "rotary.cosines", "rotary.sines"
GROUP_SIZE = "group_size"  # node metadata: the group size before scales were repeated over smaller blocks
LAST_TOKEN = "last_token"  # the node that keeps one position of each row


class Graph:
    """Nodes and constants under construction. `add` returns the name of the new node's first output."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def add(self, operator: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        outputs = outputs or [name]
        domain = CONTRIB if operator in CONTRIB_OPERATORS else ""
        self.nodes.append(helper.make_node(operator, _trimmed(inputs), outputs, name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """The name of a small constant, made once."""
        name = f"constant.{np.dtype(dtype).name}.{value}".replace(" ", "")
        self.constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype), name))
        return name


def build(architecture: Architecture, schemes: Mapping[str, Scheme], accuracy_level: int) -> ModelProto:
    """The model without its weights.

    Args:
        accuracy_level: of int4 matrices; int8 ones always take level 4, since level 0 is 20 times slower.
    """
    graph = Graph()
    lengths = _lengths(graph, architecture)
    hidden = graph.add("Gather", [EMBEDDING, "input_ids"], "embedding")
    residual, branch = hidden, ""
    for index in range(architecture.layers):
        matrices = block_matrices(architecture, schemes, index)
        residual, branch = _decoder_block(graph, architecture, matrices, index, (residual, branch), lengths, accuracy_level)
    _head(graph, architecture, head_matrix(architecture, schemes), (residual, branch), lengths, accuracy_level)
    return _model(graph, architecture)


def _lengths(graph: Graph, architecture: Architecture) -> dict[str, str]:
    """What attention has to know of lengths, computed from the attention mask [batch, total].

    Padding in front (transformers) is masked by a bias. Padding behind a prompt (onnxruntime-genai) needs none:
    the kernel takes the row's own length and overwrites the padding with the tokens that follow.
    """
    one = graph.constant([1])
    total = graph.add("Shape", ["attention_mask"], "lengths/total", start=1, end=2)
    current = graph.add("Shape", ["input_ids"], "lengths/current", start=1, end=2)
    padding = graph.add("ArgMax", ["attention_mask"], "lengths/padding", axis=1, keepdims=1)  # zeros in front, [batch, 1]
    tokens = graph.add("ReduceSum", ["attention_mask", one], "lengths/tokens", keepdims=1)
    end = graph.add("Add", [padding, tokens], "lengths/end")
    last = graph.add("Sub", [end, one], "lengths/last")
    last_flat = graph.add("Squeeze", [last, one], "lengths/last_flat")
    total_scalar = graph.add("Squeeze", [total], "lengths/total_scalar")
    return {
        "last": last,
        "past": graph.add("Sub", [total, current], "lengths/past"),
        "seqlens_k": graph.add("Cast", [last_flat], "lengths/seqlens_k", to=TensorProto.INT32),
        "total": graph.add("Cast", [total_scalar], "lengths/total_int32", to=TensorProto.INT32),
        "bias": _padding_bias(graph, padding, total_scalar, current),
        "positions": "" if rotates_inside(architecture) else _positions(graph, last, current),
    }


def _padding_bias(graph: Graph, padding: str, total: str, current: str) -> str:
    """Bias [batch, 1, current, total] that hides the padding in front of each row."""
    positions = graph.add("Range", [graph.constant(0), total, graph.constant(1)], "padding/positions")
    hidden = graph.add("Less", [positions, padding], "padding/hidden")
    values = [graph.constant(LOWEST, np.float32), graph.constant(0, np.float32)]
    row = graph.add("Where", [hidden, *values], "padding/row")
    matrix = graph.add("Unsqueeze", [row, graph.constant([1, 2])], "padding/matrix")
    one = graph.constant([1])
    shape = graph.add("Concat", [one, one, current, one], "padding/shape", axis=0)
    return graph.add("Expand", [matrix, shape], "padding/bias")


def _positions(graph: Graph, last: str, current: str) -> str:
    """Rotary position int64 [batch, current] of each token: those in front of the last one, from 0 at least."""
    zero, one = graph.constant(0), graph.constant(1)
    count = graph.add("Squeeze", [current], "positions/count")
    steps = graph.add("Range", [zero, count, one], "positions/steps")
    before = graph.add("Sub", [last, count], "positions/before")
    first = graph.add("Max", [graph.add("Add", [before, one], "positions/unclipped"), zero], "positions/first")
    return graph.add("Add", [first, steps], "positions")


def _decoder_block(
    graph: Graph,
    architecture: Architecture,
    matrices: Mapping[str, Matrix],
    index: int,
    stream: tuple[str, str],
    lengths: Mapping[str, str],
    level: int,
) -> tuple[str, str]:
    prefix = f"model.layers.{index}."
    residual, normed = _norm(graph, architecture, prefix + "input_layernorm", stream)
    query, key, value = _query_key_value(graph, architecture, matrices, index, normed, level)
    attended = _attention(graph, architecture, index, (query, key, value), lengths)
    branch = _linear(graph, matrices["self_attn.o_proj"], attended, level)
    residual, normed = _norm(graph, architecture, prefix + "post_attention_layernorm", (residual, branch))
    return residual, _gated_mlp(graph, matrices, prefix, normed, level)


def _norm(graph: Graph, architecture: Architecture, name: str, stream: tuple[str, str]) -> tuple[str, str]:
    """Add the branch to the residual and normalize the sum: (sum, normalized)."""
    residual, branch = stream
    epsilon = architecture.norm_epsilon
    if not branch:
        return residual, graph.add("SimplifiedLayerNormalization", [residual, name + ".weight"], name, epsilon=epsilon, axis=-1)
    outputs = [name, "", "", name + "/residual"]
    graph.add("SkipSimplifiedLayerNormalization", [residual, branch, name + ".weight"], name, outputs, epsilon=epsilon)
    return outputs[3], name


def _linear(graph: Graph, matrix: Matrix, features: str, level: int) -> str:
    if matrix.scheme is None:
        return _float_linear(graph, matrix, features)
    weight, scheme = matrix.name + ".weight", matrix.scheme
    zero_points = "" if scheme.symmetric else weight + ".zero_points"
    bias = matrix.name + ".bias" if matrix.has_bias else ""
    product = graph.add(
        "MatMulNBits",
        [features, weight + ".codes", weight + ".scales", zero_points, "", bias],
        matrix.name,
        K=matrix.columns,
        N=sum(matrix.rows),
        bits=scheme.bits,
        block_size=matrix.block,
        accuracy_level=level if scheme.bits == 4 else 4,
    )
    graph.nodes[-1].metadata_props.add(key=GROUP_SIZE, value=str(scheme.group_size or "channel"))
    return product


def _float_linear(graph: Graph, matrix: Matrix, features: str) -> str:
    product = graph.add("FusedMatMul", [features, matrix.name + ".weight"], matrix.name + "/product", transB=1)
    return graph.add("Add", [product, matrix.name + ".bias"], matrix.name) if matrix.has_bias else product


def _query_key_value(
    graph: Graph, architecture: Architecture, matrices: Mapping[str, Matrix], index: int, normed: str, level: int
) -> tuple[str, str, str]:
    """Query, key and value [batch, current, heads * head_dim]; or all in the first, the others empty."""
    attention = f"model.layers.{index}.self_attn."
    if "self_attn.qkv_proj" not in matrices:
        query, key, value = (_linear(graph, matrices[f"self_attn.{x}_proj"], normed, level) for x in "qkv")
    else:
        packed = _linear(graph, matrices["self_attn.qkv_proj"], normed, level)
        if not architecture.qk_norm and rotates_inside(architecture):
            return packed, "", ""
        query, key, value = outputs = [attention + x for x in ("query", "key", "value")]
        rows = graph.constant(list(matrices["self_attn.qkv_proj"].rows))
        graph.add("Split", [packed, rows], attention + "split", outputs, axis=-1)
    if architecture.qk_norm:
        query = _head_norm(graph, architecture, query, attention + "q_norm", architecture.heads)
        key = _head_norm(graph, architecture, key, attention + "k_norm", architecture.kv_heads)
    return query, key, value


def _head_norm(graph: Graph, architecture: Architecture, features: str, name: str, heads: int) -> str:
    """Normalize each head of [batch, current, heads * head_dim] by itself."""
    by_head = graph.constant([0, 0, heads, architecture.head_dim])
    split = graph.add("Reshape", [features, by_head], name + "/heads")
    epsilon = architecture.norm_epsilon
    normed = graph.add("SimplifiedLayerNormalization", [split, name + ".weight"], name + "/normed", epsilon=epsilon, axis=-1)
    return graph.add("Reshape", [normed, graph.constant([0, 0, heads * architecture.head_dim])], name)


def _attention(
    graph: Graph, architecture: Architecture, index: int, qkv: tuple[str, str, str], lengths: Mapping[str, str]
) -> str:
    name = f"model.layers.{index}.self_attn"
    inside = rotates_inside(architecture)
    if not inside:
        qkv = _rotated(graph, architecture, name, qkv, lengths["positions"])
    tables = [COSINES, SINES] if inside else ["", ""]
    past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
    present = [f"present.{index}.key", f"present.{index}.value"]
    return graph.add(
        "GroupQueryAttention",
        [*qkv, *past, lengths["seqlens_k"], lengths["total"], *tables, "", lengths["bias"]],
        name,
        [name, *present],
        num_heads=architecture.heads,
        kv_num_heads=architecture.kv_heads,
        scale=architecture.head_dim**-0.5,
        do_rotary=int(inside),
        # Counts the token itself, as transformers does: key j is seen from i if i - j < window.
        local_window_size=architecture.windows[index] or -1,
    )


def rotates_inside(architecture: Architecture) -> bool:
    """Whether attention applies the rotary embedding itself."""
    return architecture.head_dim % ROTATED_INSIDE == 0


def _rotated(
    graph: Graph, architecture: Architecture, name: str, qkv: tuple[str, str, str], positions: str
) -> tuple[str, str, str]:
    query, key, value = qkv
    rotated_query = graph.add("RotaryEmbedding", [query, positions, COSINES, SINES], name + ".rotated_query")
    return rotated_query, graph.add("RotaryEmbedding", [key, positions, COSINES, SINES], name + ".rotated_key"), value


def _gated_mlp(graph: Graph, matrices: Mapping[str, Matrix], prefix: str, normed: str, level: int) -> str:
    gate = _linear(graph, matrices["mlp.gate_proj"], normed, level)
    up = _linear(graph, matrices["mlp.up_proj"], normed, level)
    sigmoid = graph.add("Sigmoid", [gate], prefix + "mlp.sigmoid")
    activated = graph.add("Mul", [gate, sigmoid], prefix + "mlp.activated")
    gated = graph.add("Mul", [activated, up], prefix + "mlp.gated")
    return _linear(graph, matrices["mlp.down_proj"], gated, level)


def _head(
    graph: Graph, architecture: Architecture, matrix: Matrix, stream: tuple[str, str], lengths: Mapping[str, str], level: int
) -> None:
    """Logits [batch, 1, vocab_size] of the last token of each row, wherever its padding is."""
    _, normed = _norm(graph, architecture, "model.norm", stream)
    within = graph.add("Sub", [lengths["last"], lengths["past"]], "last_token/within")
    position = graph.add("Max", [within, graph.constant(0)], "last_token/position")
    index = graph.add("Unsqueeze", [position, graph.constant([1])], "last_token/index")
    last = graph.add("GatherND", [normed, index], LAST_TOKEN, batch_dims=1)
    _linear(graph, matrix, last, level)
    graph.nodes[-1].output[0] = "logits"


def _model(graph: Graph, architecture: Architecture) -> ModelProto:
    proto = helper.make_graph(
        graph.nodes, "decoder", _inputs(architecture), _outputs(architecture), list(graph.constants.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmc")


def _inputs(architecture: Architecture) -> list[ValueInfoProto]:
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "current"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
    return [tokens, mask, *_cache(architecture, "past_key_values", "past")]


def _outputs(architecture: Architecture) -> list[ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, architecture.vocab_size])
    return [logits, *_cache(architecture, "present", "total")]


def _cache(architecture: Architecture, name: str, length: str) -> list[ValueInfoProto]:
    shape = ["batch", architecture.kv_heads, length, architecture.head_dim]
    return [
        helper.make_tensor_value_info(f"{name}.{index}.{part}", TensorProto.FLOAT, shape)
        for index in range(architecture.layers)
        for part in ("key", "value")
    ]


def _trimmed(inputs: Sequence[str]) -> list[str]:
    """Inputs without absent optional ones at the end."""
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    return names
