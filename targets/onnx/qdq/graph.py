"""Builds the decoder of standard ONNX operators: nodes, inputs and outputs. Weights are named here, written elsewhere.

Nothing of it belongs to one runtime. Quantized weights are DequantizeLinear of the given integers, static activations
QuantizeLinear and DequantizeLinear in front of the product: what TensorRT calls explicit quantization. A weight lies as
[in_features, out_features] with blocks along axis 0, as weight-only exporters have it, and onnxruntime makes one
MatMulNBits of such a pair of nodes. Operators: onnx/onnx, docs/Operators.md. Names of inputs and outputs: those of
optimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, helper

from compressor.architecture import Architecture
from compressor.families import HEAD, Branch
from compressor.quantized import Scheme
from targets.onnx import interface
from targets.onnx.interface import GROUP_SIZE, LAST_TOKEN
from targets.onnx.nodes import ONNX_TYPES, Nodes
from targets.onnx.parts import activated, number, rotary_names, soft_capped, split
from targets.onnx.qdq.limits import block_size
from targets.onnx.qdq.positions import Positions

OPSET = 21  # the first with blocks and four bits in DequantizeLinear
IR_VERSION = 10

# Behind the name of a quantized weight.
CODES, SCALES, ZEROS, INPUT_SCALE, FACTORS = ".codes", ".scales", ".zeros", ".input_scale", ".input_factors"


@dataclass(frozen=True)
class Plan:
    """What the graph of one checkpoint is made of; `compute` is the dtype of activations, scales and cache."""

    architecture: Architecture
    schemes: Mapping[str, Scheme]
    compute: torch.dtype


def has_zeros(schemes: Mapping[str, Scheme], scheme: Scheme) -> bool:
    """Whether a weight has zero points, all of them 0: onnxruntime wants them for exact products of rounded inputs."""
    return scheme.bits == 8 and any(one.activations is not None for one in schemes.values())


def build(plan: Plan) -> ModelProto:
    """The model without its weights."""
    decoder = Decoder(plan)
    features = decoder.embed()
    for index in range(plan.architecture.layers):
        features = decoder.block(index, features)
    decoder.head(features)
    return decoder.model()


class Decoder:
    """The graph under construction. Values are called by name; features are [batch, current, hidden_size]."""

    def __init__(self, plan: Plan) -> None:
        self._architecture, self._schemes, self._compute = plan.architecture, plan.schemes, plan.compute
        self._linears, self._parameters = self._architecture.linears(), self._architecture.tensor_shapes().keys()
        self._nodes = Nodes()
        self._positions = Positions.measure(self._nodes)
        windows = dict.fromkeys(self._architecture.windows)
        self._masks = {window: self._positions.mask(self._nodes, self._compute, window) for window in windows}
        kinds = dict.fromkeys(self._architecture.rotary_kinds) if self._architecture.rotary_dim else ()
        self._angles = {kind: [self._rows(table) for table in rotary_names(kind)] for kind in kinds}

    def embed(self) -> str:
        modules, scale = self._architecture.modules, self._architecture.embedding_scale
        features = self._add("Gather", "embedding", modules.embedding + ".weight", "input_ids")
        if scale != 1:
            features = self._add("Mul", "embedding/scaled", features, self._number(scale))
        if modules.positions:
            places = self._add("Gather", "embedding/places", modules.positions + ".weight", self._positions.of_step)
            features = self._add("Add", "embedding/placed", features, places)
        return features

    def block(self, index: int, features: str) -> str:
        prefix, (attention, mlp) = self._architecture.modules.block(index), self._architecture.modules.branches
        attended = self._attention(index, self._norm(features, prefix + attention.norm))
        features = self._add("Add", prefix + "attended", features, self._post_norm(prefix, attention, attended))
        inner = self._mlp(prefix, self._norm(features, prefix + mlp.norm))
        return self._add("Add", prefix + "output", features, self._post_norm(prefix, mlp, inner))

    def head(self, features: str) -> None:
        """Logits [batch, 1, vocab_size] of the last token of each row, wherever its padding is."""
        shape = self._architecture
        normed = self._norm(features, shape.modules.norm)
        last = self._add("GatherND", LAST_TOKEN, normed, self._positions.last_of_step(self._nodes), batch_dims=1)
        logits = self._linear(shape.embedding if shape.tied_embeddings else HEAD, last)
        soft_capped(self._nodes, logits, shape.logit_softcap, self._compute, "logits/")
        self._nodes.nodes[-1].output[0] = "logits"

    def model(self) -> ModelProto:
        inputs = interface.inputs(self._architecture, self._compute)
        outputs = interface.outputs(self._architecture, self._compute)
        graph = helper.make_graph(self._nodes.nodes, "decoder", inputs, outputs, self._nodes.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmc")

    # ---- the parts of a block

    def _norm(self, features: str, name: str) -> str:
        """The norm `name`. Its means are taken in float32: squares are beyond float16 early."""
        wide = self._cast(features, torch.float32, name + "/wide")
        if self._architecture.norm == "layer":
            return self._layer_norm(wide, name)
        square = self._add("Mul", name + "/square", wide, wide)
        mean = self._mean(square, name + "/mean")
        root = self._add("Sqrt", name + "/root", self._add("Add", name + "/shifted", mean, self._epsilon))
        normed, shift = self._add("Div", name + "/normed", wide, root), self._architecture.norm_shift
        if not shift:
            return self._add("Mul", name, self._cast(normed, self._compute, name + "/narrow"), name + ".weight")
        # A gain of one plus the weight is not rounded to float16, and neither is what it multiplies.
        weight = self._cast(name + ".weight", torch.float32, name + "/weight")
        gain = self._add("Add", name + "/gain", weight, self._nodes.constant(shift, np.float32))
        return self._cast(self._add("Mul", name + "/scaled", normed, gain), self._compute, name)

    def _layer_norm(self, wide: str, name: str) -> str:
        centered = self._add("Sub", name + "/centered", wide, self._mean(wide, name + "/center"))
        variance = self._mean(self._add("Mul", name + "/square", centered, centered), name + "/variance")
        root = self._add("Sqrt", name + "/root", self._add("Add", name + "/shifted", variance, self._epsilon))
        normed = self._cast(self._add("Div", name + "/normed", centered, root), self._compute, name + "/narrow")
        return self._add("Add", name, self._add("Mul", name + "/scaled", normed, name + ".weight"), name + ".bias")

    def _mean(self, values: str, name: str) -> str:
        return self._add("ReduceMean", name, values, self._integers([-1]), keepdims=1)

    def _post_norm(self, prefix: str, branch: Branch, features: str) -> str:
        """What a branch adds to the residual stream."""
        return self._norm(features, prefix + branch.post_norm) if branch.post_norm else features

    def _attention(self, index: int, features: str) -> str:
        shape, attention = self._architecture, self._architecture.modules.attention
        prefix = shape.modules.block(index)
        name = prefix + attention.body
        query, key, value = self._query_key_value(prefix, features)
        query = self._rotated(index, self._heads(query, f"{name}.q", shape.heads, shape.qk_norm), f"{name}.q")
        key = self._rotated(index, self._heads(key, f"{name}.k", shape.kv_heads, shape.qk_norm), f"{name}.k")
        value = self._heads(value, f"{name}.v", shape.kv_heads, normed=False)
        keys, values = (self._cached(index, part, new) for part, new in (("key", key), ("value", value)))
        scaled = self._add("Mul", name + "/scaled", query, self._number(shape.score_scale))
        turned = self._add("Transpose", name + "/keys", self._repeated(keys, name + "/key"), perm=[0, 1, 3, 2])
        scores = self._add("MatMul", name + "/scores", scaled, turned)
        scores = soft_capped(self._nodes, scores, shape.attention_softcap, self._compute, name + "/")
        masked = self._add("Add", name + "/masked", scores, self._masks[shape.windows[index]])
        shares = self._add("Softmax", name + "/shares", masked, axis=-1)
        mixed = self._add("MatMul", name + "/mixed", shares, self._repeated(values, name + "/value"))
        together = self._add("Transpose", name + "/together", mixed, perm=[0, 2, 1, 3])
        width = self._integers([0, 0, shape.heads * shape.head_dim])
        return self._linear(prefix + attention.last, self._add("Reshape", name, together, width))

    def _query_key_value(self, prefix: str, features: str) -> list[str]:
        attention = self._architecture.modules.attention
        made = [self._linear(prefix + name, features) for name in attention.first]
        parts, rows = ("query", "key", "value"), self._architecture.qkv_rows
        return made if len(made) > 1 else split(self._nodes, made[0], rows, f"{prefix}{attention.body}/", parts)

    def _heads(self, features: str, name: str, heads: int, normed: bool) -> str:
        """[batch, current, heads * head_dim] as [batch, heads, current, head_dim], each head normed if asked."""
        shape = self._integers([0, 0, heads, self._architecture.head_dim])
        apart = self._add("Reshape", name + "/apart", features, shape)
        apart = self._norm(apart, name + "_norm") if normed else apart
        return self._add("Transpose", name + "/heads", apart, perm=[0, 2, 1, 3])

    def _rotated(self, index: int, heads: str, name: str) -> str:
        """Each head turned by the angles of its position, the first half of what is rotated against the second."""
        shape = self._architecture
        if not shape.rotary_dim:
            return heads
        cosines, sines = self._angles[shape.rotary_kinds[index]]
        half, rest = shape.rotary_dim // 2, shape.head_dim - shape.rotary_dim
        sizes = [half, half, rest] if rest else [half, half]
        first, second, *kept = split(self._nodes, heads, sizes, name + "/", ("first", "second", "rest")[: len(sizes)])
        left = self._difference(first, cosines, second, sines, name + "/left", "Sub")
        right = self._difference(second, cosines, first, sines, name + "/right", "Add")
        return self._add("Concat", name + "/rotated", left, right, *kept, axis=-1)

    def _difference(self, one: str, by_one: str, other: str, by_other: str, name: str, operator: str) -> str:
        """Sum or difference of two products."""
        products = [
            self._add("Mul", f"{name}/{part}", *factors)
            for part, factors in (("cosine", (one, by_one)), ("sine", (other, by_other)))
        ]
        return self._add(operator, name, *products)

    def _rows(self, table: str) -> str:
        """The rows of a rotary table for the tokens of this step: [batch, 1, current, rotary_dim / 2]."""
        rows = self._add("Gather", table + "/rows", table, self._positions.of_step)
        return self._add("Unsqueeze", table + "/of_heads", rows, self._integers([1]))

    def _cached(self, index: int, part: str, new: str) -> str:
        """Keys or values of all tokens, [batch, kv_heads, total, head_dim]: what is handed to the next step."""
        return self._add("Concat", f"present.{index}.{part}", f"past_key_values.{index}.{part}", new, axis=2)

    def _repeated(self, cache: str, name: str) -> str:
        """Keys or values once for each query head that shares them, [batch, heads, total, head_dim]."""
        shape = self._architecture
        if shape.heads == shape.kv_heads:
            return cache
        apart = self._add("Unsqueeze", name + "/apart", cache, self._integers([2]))
        copies = self._integers([1, 1, shape.heads // shape.kv_heads, 1, 1])
        copied = self._add("Expand", name + "/copies", apart, copies)
        return self._add("Reshape", name + "/repeated", copied, self._integers([0, shape.heads, -1, shape.head_dim]))

    def _mlp(self, prefix: str, features: str) -> str:
        mlp, shape = self._architecture.modules.mlp, self._architecture
        made = [self._linear(prefix + name, features) for name in mlp.first]
        body = f"{prefix}{mlp.body}."
        if shape.gated and len(made) == 1:
            made = split(self._nodes, made[0], shape.mlp_rows, body, ("gate", "up"))
        inner = activated(self._nodes, shape.activation, made[0], body)
        if shape.gated:
            inner = self._add("Mul", body + "gated", inner, made[1])
        return self._linear(prefix + mlp.last, inner)

    # ---- linears

    def _linear(self, name: str, features: str) -> str:
        scheme, weight = self._schemes.get(name), name + ".weight"
        if scheme is None:
            matrix = self._add("Transpose", weight + "/turned", weight, perm=[1, 0])
        else:
            matrix, features = self._dequantized(name, scheme), self._prepared(name, scheme, features)
        product = self._add("MatMul", name + "/product", features, matrix)
        bias = name + ".bias"
        return self._add("Add", name, product, bias) if bias in self._parameters else product

    def _dequantized(self, name: str, scheme: Scheme) -> str:
        """The weight [in_features, out_features] of its integers: a scale a column, or blocks along axis 0."""
        weight = name + ".weight"
        block = block_size(scheme, self._linears[name][1])
        blocks = {"axis": 1} if block is None else {"axis": 0, "block_size": block}
        zeros = weight + ZEROS if has_zeros(self._schemes, scheme) else ""
        matrix = self._add("DequantizeLinear", weight, weight + CODES, weight + SCALES, zeros, **blocks)
        self._nodes.nodes[-1].metadata_props.add(key=GROUP_SIZE, value=str(scheme.group_size or "channel"))
        return matrix

    def _prepared(self, name: str, scheme: Scheme, features: str) -> str:
        """Features as the quantized matrix meets them: multiplied by factors of their own, then rounded."""
        weight = name + ".weight"
        if scheme.input_factors:
            features = self._add("Mul", name + "/inputs", features, weight + FACTORS)
        return features if scheme.activations is None else self._rounded(features, weight + INPUT_SCALE)

    def _rounded(self, features: str, scale: str) -> str:
        """Features rounded to int8 by one scale, and back."""
        zero = self._nodes.constant(0, np.int8)
        codes = self._add("QuantizeLinear", scale + "/codes", features, scale, zero)
        return self._add("DequantizeLinear", scale + "/rounded", codes, scale, zero)

    # ---- small things

    def _add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        return self._nodes.add(operator, inputs, name, **attributes)

    def _cast(self, value: str, dtype: torch.dtype, name: str) -> str:
        return value if self._compute == torch.float32 else self._add("Cast", name, value, to=ONNX_TYPES[dtype])

    def _integers(self, values: list[int]) -> str:
        return self._nodes.constant(values)

    def _number(self, value: float) -> str:
        return number(self._nodes, value, self._compute)

    @property
    def _epsilon(self) -> str:
        return self._nodes.constant(self._architecture.norm_epsilon, np.float32)
