"""Builds the decoder graph: nodes, inputs and outputs. Weights are named here and written by `weights.py`.

The operators are those that onnxruntime fuses decoders into (GroupQueryAttention, MatMulNBits, GatherBlockQuantized,
SkipSimplifiedLayerNormalization), written down directly, so that nothing depends on a pattern being recognised.
Operators: microsoft/onnxruntime, docs/ContribOperators.md. Names of inputs and outputs: those of optimum and
onnxruntime-genai.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from onnx import ModelProto, helper

from compressor.families import Branch
from compressor.quantized import Scheme
from targets.onnx import interface
from targets.onnx.interface import GROUP_SIZE, LAST_TOKEN
from targets.onnx.lengths import Lengths
from targets.onnx.nodes import CONTRIB, ONNX_TYPES, Nodes
from targets.onnx.parts import activated, number, rotary_names, soft_capped, split
from targets.onnx.plan import LOW_RANK_PARTS, PACKED, Matrix, Plan

OPSET = 21
IR_VERSION = 10  # the first whose nodes carry metadata

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
        widths = (self._architecture.head_dim, self._architecture.rotary_dim)
        self._has_rotary = self._architecture.rotary_dim > 0
        self._rotates_inside = self._has_rotary and not any(width % ROTATED_INSIDE for width in widths)
        self._lengths = Lengths.measure(self._nodes)
        self._attention_lengths = self._lengths.of_attention(self._nodes)
        self._padding_bias = self._lengths.padding_bias(self._nodes, self._compute)
        rotates_itself = self._has_rotary and not self._rotates_inside
        self._positions = self._lengths.positions(self._nodes) if rotates_itself else ""
        self._residual, self._branch = "", ""

    def embed(self, table: Matrix) -> None:
        if table.scheme is None:
            rows = self._nodes.add("Gather", [table.weight, "input_ids"], "embedding/rows")
            self._residual = self._cast(rows, table.dtype, "embedding")
        else:
            self._residual = self._quantized_rows(table, table.scheme)
        positions, scale = self._architecture.modules.positions, self._architecture.embedding_scale
        if scale != 1:
            self._residual = self._nodes.add("Mul", [self._residual, self._number(scale)], "embedding/scaled")
        if positions:
            indices = self._lengths.learned_positions(self._nodes)
            places = self._nodes.add("Gather", [positions + ".weight", indices], "embedding/positions")
            self._residual = self._nodes.add("Add", [self._residual, places], "embedding/placed")

    def block(self, index: int, matrices: Mapping[str, Matrix]) -> None:
        attention, mlp = self._architecture.modules.branches
        prefix = self._architecture.modules.block(index)
        normed = self._norm(prefix + attention.norm)
        attended = self._attention(index, self._query_key_value(index, matrices, normed))
        self._branch = self._post_norm(prefix, attention, self._linear(matrices[attention.last], attended))
        normed = self._norm(prefix + mlp.norm)
        inner = (
            self._gated(prefix, matrices, normed) if self._architecture.gated else self._plain(prefix, matrices, normed)
        )
        self._branch = self._post_norm(prefix, mlp, self._linear(matrices[mlp.last], inner))

    def head(self, matrix: Matrix) -> None:
        """Logits [batch, 1, vocab_size] of the last token of each row, wherever its padding is."""
        normed, cap = self._norm(self._architecture.modules.norm), self._architecture.logit_softcap
        last = self._nodes.add("GatherND", [normed, self._lengths.last_of_step(self._nodes)], LAST_TOKEN, batch_dims=1)
        logits = self._linear(matrix, last)
        soft_capped(self._nodes, logits, cap, self._compute, "logits/")
        self._nodes.nodes[-1].output[0] = "logits"

    def model(self) -> ModelProto:
        inputs = interface.inputs(self._architecture, self._compute)
        outputs = interface.outputs(self._architecture, self._compute)
        graph = helper.make_graph(self._nodes.nodes, "decoder", inputs, outputs, self._nodes.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmc")

    def _norm(self, name: str) -> str:
        """Add the branch to the residual, and normalize the sum."""
        if not self._branch:
            return self._normalized(self._residual, name)
        inputs = [self._residual, self._branch, self._gain(name), *self._norm_bias(name)]
        self._residual, self._branch = name + "/residual", ""
        outputs, epsilon = [name, "", "", self._residual], self._architecture.norm_epsilon
        return self._nodes.add("Skip" + self._norm_operator, inputs, name, outputs, epsilon=epsilon)

    def _normalized(self, features: str, name: str, output: str = "") -> str:
        """`features`, normalized by the norm `name` and called that unless said otherwise."""
        inputs, epsilon = [features, self._gain(name), *self._norm_bias(name)], self._architecture.norm_epsilon
        return self._nodes.add(self._norm_operator, inputs, output or name, axis=-1, epsilon=epsilon)

    def _post_norm(self, prefix: str, branch: Branch, features: str) -> str:
        """What a branch adds to the residual stream."""
        return self._normalized(features, prefix + branch.post_norm) if branch.post_norm else features

    @property
    def _norm_operator(self) -> str:
        return "SimplifiedLayerNormalization" if self._architecture.norm == "rms" else "LayerNormalization"

    def _gain(self, norm: str) -> str:
        """What a norm multiplies by. The file keeps the weight as it is; onnxruntime adds the shift once."""
        weight, shift = norm + ".weight", self._architecture.norm_shift
        return self._nodes.add("Add", [self._number(shift), weight], norm + "/gain") if shift else weight

    def _norm_bias(self, norm: str) -> list[str]:
        return [] if self._architecture.norm == "rms" else [norm + ".bias"]

    def _number(self, value: float) -> str:
        return number(self._nodes, value, self._compute)

    def _linear(self, matrix: Matrix, features: str) -> str:
        if not matrix.has_base:
            return self._biased(matrix, self._low_rank(matrix, features))
        multiply = self._float_linear if matrix.scheme is None else self._quantized_linear
        product = multiply(matrix, features)
        if not matrix.ranks:
            return product
        return self._nodes.add("Add", [product, self._low_rank(matrix, features)], matrix.name + "/sum")

    def _low_rank(self, matrix: Matrix, features: str) -> str:
        """What factors make of features, part by part."""
        made = []
        for part in matrix.parts:
            down, up = (self._cast(part + suffix, matrix.dtype, part + suffix + "/cast") for suffix in LOW_RANK_PARTS)
            narrow = self._nodes.add("FusedMatMul", [features, down], part + "/down", transB=1)
            made.append(self._nodes.add("FusedMatMul", [narrow, up], part + "/up", transB=1))
        return made[0] if len(made) == 1 else self._nodes.add("Concat", made, matrix.name + "/factors", axis=-1)

    def _float_linear(self, matrix: Matrix, features: str) -> str:
        weight = self._cast(matrix.weight, matrix.dtype, matrix.weight + "/cast")
        # The weight is [out_features, in_features], as the checkpoint has it and as the embedding needs it.
        return self._biased(
            matrix, self._nodes.add("FusedMatMul", [features, weight], matrix.name + "/product", transB=1)
        )

    def _biased(self, matrix: Matrix, product: str) -> str:
        return self._nodes.add("Add", [product, matrix.bias], matrix.name) if matrix.bias else product

    def _quantized_linear(self, matrix: Matrix, features: str) -> str:
        scheme, weight = matrix.scheme, matrix.weight
        assert scheme is not None
        if matrix.factors:
            features = self._nodes.add("Mul", [features, matrix.factors], matrix.name + "/inputs")
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
        architecture, attention = self._architecture, self._architecture.modules.attention
        name = f"{architecture.modules.block(index)}{attention.body}."
        if attention.first[-1] in matrices and len(attention.first) > 1:
            query, key, value = (self._linear(matrices[part], normed) for part in attention.first)
        else:
            packed = matrices.get(f"{attention.body}.{PACKED}") or matrices[attention.first[0]]
            features = self._linear(packed, normed)
            if not architecture.qk_norm and (self._rotates_inside or not self._has_rotary):
                return features, "", ""
            query, key, value = split(self._nodes, features, architecture.qkv_rows, name, ("query", "key", "value"))
        if architecture.qk_norm:
            query = self._head_norm(query, name + "q_norm", architecture.heads)
            key = self._head_norm(key, name + "k_norm", architecture.kv_heads)
        if self._positions:
            kind = architecture.rotary_kinds[index]
            query = self._rotated(query, kind, name + "q_rotated", architecture.heads)
            key = self._rotated(key, kind, name + "k_rotated", architecture.kv_heads)
        return query, key, value

    def _head_norm(self, features: str, name: str, heads: int) -> str:
        """Normalize each head of [batch, current, heads * head_dim] by itself."""
        width = self._architecture.head_dim
        by_head = self._nodes.add("Reshape", [features, self._nodes.constant([0, 0, heads, width])], name + "/heads")
        normed = self._normalized(by_head, name, name + "/normed")
        return self._nodes.add("Reshape", [normed, self._nodes.constant([0, 0, heads * width])], name)

    def _rotated(self, features: str, kind: str, name: str, heads: int) -> str:
        """Heads [batch, current, heads * head_dim] rotated, all of each or its leading features."""
        width, partial = self._architecture.rotary_dim, self._architecture.rotary_dim != self._architecture.head_dim
        attributes: dict[str, Any] = {"rotary_embedding_dim": width, "num_heads": heads} if partial else {}
        inputs = [features, self._positions, *rotary_names(kind)]
        return self._nodes.add("RotaryEmbedding", inputs, name, **attributes)

    def _attention(self, index: int, query_key_value: tuple[str, str, str]) -> str:
        architecture = self._architecture
        past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        present = [f"present.{index}.key", f"present.{index}.value"]
        tables = rotary_names(architecture.rotary_kinds[index]) if self._rotates_inside else ["", ""]
        name = architecture.modules.block(index) + architecture.modules.attention.body
        cap = {} if architecture.attention_softcap is None else {"softcap": architecture.attention_softcap}
        return self._nodes.add(
            "GroupQueryAttention",
            [*query_key_value, *past, *self._attention_lengths, *tables, "", self._padding_bias],
            name,
            [name, *present],
            num_heads=architecture.heads,
            kv_num_heads=architecture.kv_heads,
            scale=architecture.score_scale,
            do_rotary=int(self._rotates_inside),
            # Counts the token itself, as transformers does: key j is seen from i if i - j < window.
            local_window_size=architecture.windows[index] or -1,
            **cap,
        )

    def _gated(self, prefix: str, matrices: Mapping[str, Matrix], normed: str) -> str:
        """What the last linear of a gated MLP reads."""
        mlp = self._architecture.modules.mlp
        made = [self._linear(matrices[name], normed) for name in mlp.first]
        rows = self._architecture.mlp_rows
        gate, up = made if len(made) == 2 else split(self._nodes, made[0], rows, f"{prefix}{mlp.body}.", ("gate", "up"))
        return self._nodes.add("Mul", [self._activated(prefix, gate), up], f"{prefix}{mlp.body}.gated")

    def _plain(self, prefix: str, matrices: Mapping[str, Matrix], normed: str) -> str:
        """What the last linear of an MLP without a gate reads."""
        (first,) = self._architecture.modules.mlp.first
        return self._activated(prefix, self._linear(matrices[first], normed))

    def _activated(self, prefix: str, features: str) -> str:
        body = f"{prefix}{self._architecture.modules.mlp.body}."
        return activated(self._nodes, self._architecture.activation, features, body)


def _zero_points(matrix: Matrix) -> str:
    assert matrix.scheme is not None
    return "" if matrix.scheme.symmetric else matrix.weight + ".zero_points"
