"""Builds the decoder graph: nodes, inputs and outputs. Weights are named here and written by `weights.py`.

The operators are those that onnxruntime fuses decoders into (GroupQueryAttention, MatMulNBits, GatherBlockQuantized,
SkipSimplifiedLayerNormalization), written down directly, so that nothing depends on a pattern being recognised.
Operators: microsoft/onnxruntime, docs/ContribOperators.md. Names of inputs and outputs: those of optimum and
onnxruntime-genai.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from compressor.architecture import Architecture
from compressor.quantized import Scheme
from targets.onnx.lengths import Lengths
from targets.onnx.nodes import CONTRIB, ONNX_TYPES, Nodes
from targets.onnx.plan import Matrix, Plan

OPSET = 21
IR_VERSION = 10  # the first whose nodes carry metadata

COSINES, SINES = "rotary.cosines", "rotary.sines"
GROUP_SIZE = "group_size"  # node metadata: the group size before scales were repeated over smaller blocks
LAST_TOKEN = "last_token"  # name of the node that keeps one position of each row
# GroupQueryAttention rotates heads of a multiple of this width itself; others are rotated before it.
ROTATED_INSIDE = 16
INT8_LEVEL = 4  # of int8 matrices whatever was asked: level 0 is 20 times slower


def build(plan: Plan, accuracy_level: int) -> ModelProto:
    """The model without its weights.

    Args:
        accuracy_level: of int4 matrices (see MatMulNBits).
    """
    decoder = Decoder(plan, accuracy_level)
    decoder.embed(plan.table())
    for index in range(plan.architecture.layers):
        decoder.block(index, plan.block(index))
    decoder.head(plan.head())
    return decoder.model()


class Decoder:
    """The graph under construction, from the embedding to the logits.

    Values are called by name. The residual stream is a sum not yet made, `_residual` + `_branch`, since
    one operator adds and normalizes at once.
    """

    def __init__(self, plan: Plan, accuracy_level: int) -> None:
        self._architecture, self._compute, self._level = plan.architecture, plan.compute, accuracy_level
        self._nodes = Nodes()
        self._rotates_inside = self._architecture.head_dim % ROTATED_INSIDE == 0
        self._lengths = Lengths.measure(self._nodes)
        self._attention_lengths = self._lengths.of_attention(self._nodes)
        self._padding_bias = self._lengths.padding_bias(self._nodes, self._compute)
        self._positions = "" if self._rotates_inside else self._lengths.positions(self._nodes)
        self._residual, self._branch = "", ""

    def embed(self, table: Matrix) -> None:
        if table.scheme is None:
            rows = self._nodes.add("Gather", [table.weight, "input_ids"], "embedding/rows")
            self._residual = self._cast(rows, table.dtype, "embedding")
        else:
            self._residual = self._quantized_rows(table, table.scheme)

    def block(self, index: int, matrices: Mapping[str, Matrix]) -> None:
        prefix = f"model.layers.{index}."
        normed = self._norm(prefix + "input_layernorm")
        attended = self._attention(index, self._query_key_value(index, matrices, normed))
        self._branch = self._linear(matrices["self_attn.o_proj"], attended)
        normed = self._norm(prefix + "post_attention_layernorm")
        self._branch = self._gated_mlp(prefix, matrices, normed)

    def head(self, matrix: Matrix) -> None:
        """Logits [batch, 1, vocab_size] of the last token of each row, wherever its padding is."""
        normed = self._norm("model.norm")
        last = self._nodes.add("GatherND", [normed, self._lengths.last_of_step(self._nodes)], LAST_TOKEN, batch_dims=1)
        self._linear(matrix, last)
        self._nodes.nodes[-1].output[0] = "logits"

    def model(self) -> ModelProto:
        kind = ONNX_TYPES[self._compute]
        inputs, outputs = _inputs(self._architecture, kind), _outputs(self._architecture, kind)
        graph = helper.make_graph(self._nodes.nodes, "decoder", inputs, outputs, self._nodes.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmc")

    def _norm(self, name: str) -> str:
        """Add the branch to the residual, and normalize the sum."""
        weight, epsilon = name + ".weight", self._architecture.norm_epsilon
        if not self._branch:
            return self._rms_norm(self._residual, weight, name)
        inputs = [self._residual, self._branch, weight]
        self._residual, self._branch = name + "/residual", ""
        outputs = [name, "", "", self._residual]
        return self._nodes.add("SkipSimplifiedLayerNormalization", inputs, name, outputs, epsilon=epsilon)

    def _rms_norm(self, features: str, weight: str, name: str) -> str:
        epsilon = self._architecture.norm_epsilon
        return self._nodes.add("SimplifiedLayerNormalization", [features, weight], name, axis=-1, epsilon=epsilon)

    def _linear(self, matrix: Matrix, features: str) -> str:
        multiply = self._float_linear if matrix.scheme is None else self._quantized_linear
        return multiply(matrix, features)

    def _float_linear(self, matrix: Matrix, features: str) -> str:
        weight = self._cast(matrix.weight, matrix.dtype, matrix.weight + "/cast")
        # The weight is [out_features, in_features], as the checkpoint has it and as the embedding needs it.
        product = self._nodes.add("FusedMatMul", [features, weight], matrix.name + "/product", transB=1)
        return self._nodes.add("Add", [product, matrix.bias], matrix.name) if matrix.bias else product

    def _quantized_linear(self, matrix: Matrix, features: str) -> str:
        scheme, weight = matrix.scheme, matrix.weight
        assert scheme is not None
        product = self._nodes.add(
            "MatMulNBits",
            [features, weight + ".codes", weight + ".scales", _zero_points(matrix), "", matrix.bias],
            matrix.name,
            K=matrix.columns,
            N=sum(matrix.rows),
            bits=scheme.bits,
            block_size=matrix.block,
            accuracy_level=INT8_LEVEL if scheme.bits == 8 else self._level,
        )
        self._note_group_size(scheme)
        return product

    def _quantized_rows(self, table: Matrix, scheme: Scheme) -> str:
        """The rows of the input tokens, dequantized one by one."""
        weight = table.weight
        rows = self._nodes.add(
            "GatherBlockQuantized",
            [weight + ".rows", "input_ids", weight + ".scales", _zero_points(table)],
            "embedding",
            bits=scheme.bits,
            block_size=table.block,
            gather_axis=0,
            quantize_axis=1,
        )
        self._note_group_size(scheme)
        return rows

    def _note_group_size(self, scheme: Scheme) -> None:
        self._nodes.nodes[-1].metadata_props.add(key=GROUP_SIZE, value=str(scheme.group_size or "channel"))

    def _cast(self, value: str, stored: torch.dtype, name: str) -> str:
        """`value` in the dtype that the graph computes in. onnxruntime casts weights once, when it opens the model."""
        if stored == self._compute:
            return value
        return self._nodes.add("Cast", [value], name, to=ONNX_TYPES[self._compute])

    def _query_key_value(self, index: int, matrices: Mapping[str, Matrix], normed: str) -> tuple[str, str, str]:
        """Query, key and value [batch, current, heads * head_dim]; or all in the first, the others empty."""
        name, architecture = f"model.layers.{index}.self_attn.", self._architecture
        packed = matrices.get("self_attn.qkv_proj")
        if packed is None:
            query, key, value = (self._linear(matrices[f"self_attn.{x}_proj"], normed) for x in "qkv")
        else:
            features = self._linear(packed, normed)
            if self._rotates_inside and not architecture.qk_norm:
                return features, "", ""
            query, key, value = outputs = [name + part for part in ("query", "key", "value")]
            rows = self._nodes.constant(list(packed.rows))
            self._nodes.add("Split", [features, rows], name + "split", outputs, axis=-1)
        if architecture.qk_norm:
            query = self._head_norm(query, name + "q_norm", architecture.heads)
            key = self._head_norm(key, name + "k_norm", architecture.kv_heads)
        if not self._rotates_inside:
            query, key = self._rotated(query, name + "q_rotated"), self._rotated(key, name + "k_rotated")
        return query, key, value

    def _head_norm(self, features: str, name: str, heads: int) -> str:
        """Normalize each head of [batch, current, heads * head_dim] by itself."""
        width = self._architecture.head_dim
        by_head = self._nodes.add("Reshape", [features, self._nodes.constant([0, 0, heads, width])], name + "/heads")
        normed = self._rms_norm(by_head, name + ".weight", name + "/normed")
        return self._nodes.add("Reshape", [normed, self._nodes.constant([0, 0, heads * width])], name)

    def _rotated(self, features: str, name: str) -> str:
        return self._nodes.add("RotaryEmbedding", [features, self._positions, COSINES, SINES], name)

    def _attention(self, index: int, query_key_value: tuple[str, str, str]) -> str:
        architecture = self._architecture
        past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        present = [f"present.{index}.key", f"present.{index}.value"]
        tables = [COSINES, SINES] if self._rotates_inside else ["", ""]
        name = f"model.layers.{index}.self_attn"
        return self._nodes.add(
            "GroupQueryAttention",
            [*query_key_value, *past, *self._attention_lengths, *tables, "", self._padding_bias],
            name,
            [name, *present],
            num_heads=architecture.heads,
            kv_num_heads=architecture.kv_heads,
            scale=architecture.head_dim**-0.5,
            do_rotary=int(self._rotates_inside),
            # Counts the token itself, as transformers does: key j is seen from i if i - j < window.
            local_window_size=architecture.windows[index] or -1,
        )

    def _gated_mlp(self, prefix: str, matrices: Mapping[str, Matrix], normed: str) -> str:
        gate = self._linear(matrices["mlp.gate_proj"], normed)
        up = self._linear(matrices["mlp.up_proj"], normed)
        # onnxruntime makes one node of these two, its sign of SiLU.
        sigmoid = self._nodes.add("Sigmoid", [gate], prefix + "mlp.sigmoid")
        activated = self._nodes.add("Mul", [gate, sigmoid], prefix + "mlp.activated")
        gated = self._nodes.add("Mul", [activated, up], prefix + "mlp.gated")
        return self._linear(matrices["mlp.down_proj"], gated)


def _zero_points(matrix: Matrix) -> str:
    assert matrix.scheme is not None
    return "" if matrix.scheme.symmetric else matrix.weight + ".zero_points"


def _inputs(architecture: Architecture, kind: int) -> list[ValueInfoProto]:
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "current"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
    return [tokens, mask, *_cache(architecture, kind, "past_key_values", "past")]


def _outputs(architecture: Architecture, kind: int) -> list[ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", kind, ["batch", 1, architecture.vocab_size])
    return [logits, *_cache(architecture, kind, "present", "total")]


def _cache(architecture: Architecture, kind: int, name: str, length: str) -> list[ValueInfoProto]:
    shape: tuple[str | int, ...] = ("batch", architecture.kv_heads, length, architecture.head_dim)
    return [
        helper.make_tensor_value_info(f"{name}.{index}.{part}", kind, shape)
        for index in range(architecture.layers)
        for part in ("key", "value")
    ]
