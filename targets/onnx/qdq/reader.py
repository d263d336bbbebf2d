"""Reads the weights of an artifact back, with onnx for the file and onnxruntime for the integers.

onnxruntime's DequantizeLinear says what a stored byte means: with scales of one it gives the integers, and with the
stored ones the products, which are compared. Nothing here comes from the modules that wrote the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper

from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import Activations, QuantizedWeight, Scheme
from targets.onnx.file import damage_told, load_graph, read_bytes
from targets.onnx.reader import load

BITS: Mapping[int, int] = {TensorProto.INT4: 4, TensorProto.INT8: 8}
ROUNDED, MULTIPLIED = "rounded", "multiplied"  # what is done to the features of a product
FACTORS = ".input_factors"  # how names end of what features are multiplied by
TABLES = "rotary."  # what the names of those begin with that are no parameters of the checkpoint
OUTPUT_BYTES = 64 << 20  # of one run of a node


def read_weights(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every parameter of the artifact's graph under its checkpoint name, one matrix in memory at a time.

    Raises:
        InputError: the graph is damaged.
        RunError: onnxruntime makes other numbers of the file than its integers and scales; or the file is not whole.
    """
    with damage_told(root):
        yield from _weights(_Graph(root, load_graph(root).graph))


def _weights(graph: _Graph) -> Iterator[tuple[str, Weight]]:
    for node in graph.quantized.values():
        yield node.output[0], graph.weight_of(node)
    for name in graph.stored:
        if name not in graph.used_by_quantized and not name.startswith(TABLES):
            yield name, torch.from_numpy(graph.load(name))


@dataclass(frozen=True)
class _Graph:
    """An artifact's graph; `stored` are the initializers whose data is in another file."""

    root: Path
    proto: onnx.GraphProto

    @cached_property
    def stored(self) -> Mapping[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.initializer if tensor.external_data}

    @cached_property
    def quantized(self) -> Mapping[str, NodeProto]:
        """The nodes that dequantize a stored weight, by what they make."""
        nodes = (node for node in self.proto.node if node.op_type == "DequantizeLinear")
        return {node.output[0]: node for node in nodes if node.input[0] in self.stored}

    @cached_property
    def used_by_quantized(self) -> set[str]:
        prepared = (used.values() for used in self.prepared.values())
        return set().union(*prepared, *(node.input for node in self.quantized.values()))

    @cached_property
    def prepared(self) -> Mapping[str, Mapping[str, str]]:
        """By quantized matrix, the stored tensors by which features are rounded and multiplied before they meet it."""
        products = (node for node in self.proto.node if node.op_type == "MatMul" and node.input[1] in self.quantized)
        return {node.input[1]: dict(self._preparation(node.input[0])) for node in products}

    def _preparation(self, features: str) -> Iterator[tuple[str, str]]:
        """From the product back. A norm ends in a Mul too, but by its weight.

        Raises:
            RunError: features are rounded by another scale than the one that they are multiplied by again.
        """
        node = self._makers.get(features)
        if node is not None and node.op_type == "DequantizeLinear":
            rounding = self._makers.get(node.input[0])
            if rounding is None or rounding.op_type != "QuantizeLinear" or rounding.input[1] != node.input[1]:
                raise RunError(
                    f"What {features} is made of was not rounded by {node.input[1]}.", "Lower the model again."
                )
            yield ROUNDED, node.input[1]
            node = self._makers.get(rounding.input[0])
        if node is not None and node.op_type == "Mul" and node.input[1].endswith(FACTORS):
            yield MULTIPLIED, node.input[1]

    @cached_property
    def _makers(self) -> Mapping[str, NodeProto]:
        return {output: node for node in self.proto.node for output in node.output}

    def weight_of(self, node: NodeProto) -> QuantizedWeight:
        """The weight in its integers, [out_features, in_features]."""
        if any(self.load(name).any() for name in node.input[2:]):
            raise RunError(f"{node.input[0]} has zero points other than 0.", "Lower the model again.")
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        bits, scales = BITS[self.stored[node.input[0]].data_type], self.load(node.input[1])
        codes = self._codes(node.input[0], scales, attributes)
        size = {entry.key: entry.value for entry in node.metadata_props}["group_size"]
        group_size = None if size == "channel" else int(size)
        prepared = {part: self._float(name) for part, name in self.prepared.get(node.output[0], {}).items()}
        input_scale, factors = prepared.get(ROUNDED), prepared.get(MULTIPLIED)
        activations = None if input_scale is None else Activations(dynamic=False)
        rows = scales.reshape(-1, codes.shape[1]).T.astype(np.float32)
        per_group = rows.shape[1] * (group_size or len(codes)) // len(codes)
        return QuantizedWeight(
            torch.from_numpy(codes.T.copy()),
            torch.from_numpy(_of_groups(rows, per_group)),
            None,
            Scheme(bits, group_size, activations=activations, input_factors=factors is not None),
            input_scale,
            input_factors=factors,
        )

    def load(self, name: str) -> np.ndarray:
        """A stored tensor; int4 as the bytes it is packed in.

        Raises:
            InputError: its file ends before the tensor does, or its bytes are not those of its shape.
        """
        tensor = self.stored[name]
        if tensor.data_type == TensorProto.INT4:
            return read_bytes(self.root, tensor)
        return load(self.root, tensor).numpy()

    def _float(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.load(name)).float()

    def _codes(self, name: str, scales: np.ndarray, attributes: Mapping[str, int]) -> np.ndarray:
        """int8 [in_features, out_features]: what the node makes of the stored codes, some rows at a time.

        Raises:
            RunError: with the stored scales it makes something else than their products with these.
        """
        tensor, stored = self.stored[name], self.load(name)
        rows, columns = tensor.dims
        block = attributes.get("block_size", rows)
        step = max(1, OUTPUT_BYTES // (4 * columns * block)) * block
        parts = []
        for start in range(0, rows, step):
            count = min(step, rows - start)
            part = stored.reshape(rows, -1)[start : start + count]
            own = scales if scales.ndim == 1 else scales[start // block : (start + count) // block]
            codes = _dequantize(tensor.data_type, part, (count, columns), np.ones_like(own), attributes)
            meant = codes * (own if own.ndim == 1 else own.repeat(block, axis=0))
            if not np.array_equal(_dequantize(tensor.data_type, part, (count, columns), own, attributes), meant):
                raise RunError(f"onnxruntime makes another matrix of {name} than its integers and scales do.")
            parts.append(codes.astype(np.int8))
        return np.concatenate(parts)


def _of_groups(scales: np.ndarray, per_group: int) -> np.ndarray:
    """One scale a group out of one a block; all of them if a group's differ, which then equals no weight."""
    grouped = scales.reshape(len(scales), -1, per_group)
    return np.ascontiguousarray(grouped[:, :, 0] if (grouped == grouped[:, :, :1]).all() else scales)


def _dequantize(
    kind: int, codes: np.ndarray, shape: tuple[int, int], scales: np.ndarray, attributes: Mapping[str, Any]
) -> np.ndarray:
    """The output of one DequantizeLinear, in the dtype of the scales; nothing is optimized away."""
    stored = helper.make_tensor("codes", kind, shape, codes.tobytes(), raw=True)
    dtype = helper.np_dtype_to_tensor_dtype(scales.dtype)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["codes", "scales"], ["output"], **attributes)],
        "probe",
        [helper.make_tensor_value_info("scales", dtype, scales.shape)],
        [helper.make_tensor_value_info("output", dtype, shape)],
        [stored],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a session a probe: none is worth it
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"scales": np.ascontiguousarray(scales)})[0]
