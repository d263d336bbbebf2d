"""Reads the weights of an artifact back, with onnx for the file and onnxruntime for the integers.

Which bit belongs to which weight is onnxruntime's to say: every quantized matrix is multiplied with a unit matrix by
the kernel that will serve it. Nothing here comes from the modules that wrote the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from compressor.architecture import Architecture, read_config, resolve
from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme

OUTPUT_BYTES = 64 << 20  # of one product with the unit matrix
# Which input of an operator is a weight.
WEIGHT_INPUTS = {
    "Gather": 0,
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
    "FusedMatMul": 1,
    "Add": 1,
    "MatMulNBits": 1,
}
MATMULNBITS_INPUTS = ("features", "codes", "scales", "zero_points", "order", "bias")


def read_weights(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every parameter of the artifact's graph under its checkpoint name, one matrix in memory at a time."""
    architecture = resolve(read_config(root))
    model = onnx.load(root / "model.onnx", load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        name = node.input[WEIGHT_INPUTS[node.op_type]] if node.op_type in WEIGHT_INPUTS else ""
        # Constants of the graph are initializers too, but not external; a tied embedding is used twice.
        if name in seen or name not in stored or not stored[name].external_data:
            continue
        seen.add(name)
        yield from _parameters(root, architecture, node, name, stored)


def _parameters(
    root: Path, architecture: Architecture, node: NodeProto, name: str, stored: Mapping[str, TensorProto]
) -> Iterator[tuple[str, Weight]]:
    if node.op_type != "MatMulNBits":
        yield from _split_rows(architecture, name, torch.from_numpy(_load(root, stored[name])))
        return
    inputs = dict(zip(MATMULNBITS_INPUTS, node.input, strict=False))
    arrays = {slot: _load(root, stored[used]) for slot, used in inputs.items() if used in stored}
    yield from _split_quantized(architecture, name.removesuffix(".codes"), QuantizedMatrix.of(node, arrays).recover())
    if "bias" in arrays:
        yield from _split_rows(architecture, inputs["bias"], torch.from_numpy(arrays["bias"]))


def _load(root: Path, tensor: TensorProto) -> np.ndarray:
    """An external tensor, in one copy of its bytes.

    Raises:
        RunError: the data file ends before the tensor does.
    """
    place = ExternalDataInfo(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = np.fromfile(root / place.location, dtype, math.prod(tensor.dims), offset=place.offset or 0)
    if values.nbytes != place.length:
        raise RunError(f"{root / place.location} ends before tensor {tensor.name} does.", "Lower the model again.")
    return values.reshape(tensor.dims)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A MatMulNBits node taken out of its graph, with the bytes it is stored with."""

    bits: int
    block: int
    rows: int
    columns: int
    group_size: int | None
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None

    @classmethod
    def of(cls, node: NodeProto, stored: Mapping[str, np.ndarray]) -> QuantizedMatrix:
        values = {attribute.name: attribute.i for attribute in node.attribute}
        group = {entry.key: entry.value for entry in node.metadata_props}["group_size"]
        return cls(
            values["bits"],
            values["block_size"],
            values["N"],
            values["K"],
            None if group == "channel" else int(group),
            stored["codes"],
            stored["scales"],
            stored.get("zero_points"),
        )

    def recover(self) -> QuantizedWeight:
        """The weight in its integers.

        Raises:
            RunError: onnxruntime multiplies by another matrix than integers, scales and zero points make.
        """
        codes = self._codes()
        zero_points = None if self.zero_points is None else self._zero_points(codes)
        scheme = Scheme(self.bits, self.group_size, zero_points is None)
        self._check(codes, zero_points)
        points = None if zero_points is None else torch.from_numpy(self._of_groups(zero_points))
        return QuantizedWeight(torch.from_numpy(codes), torch.from_numpy(self._of_groups(self.scales)), points, scheme)

    def _codes(self) -> np.ndarray:
        """int8 [rows, columns]: a unit matrix times the stored integers with unit scales.

        Blocks are stored one after the other, so each is taken as a row of its own and the unit matrix needs to be
        no larger than a block.
        """
        blocks = self.codes.reshape(-1, 1, self.codes.shape[2])
        unit = np.eye(self.block, dtype=np.float32)
        step = max(1, OUTPUT_BYTES // (4 * self.block))
        parts = []
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            ones = np.ones((len(part), 1), np.float32)
            parts.append(_multiply(unit, self.bits, self.block, part, ones).T.astype(np.int8))
        return np.concatenate(parts).reshape(self.rows, -1)[:, : self.columns].copy()

    def _zero_points(self, codes: np.ndarray) -> np.ndarray:
        """int8 [rows, blocks]: how far a zero point moves the first integer of each block."""
        moved = self._first_of_blocks(np.ones_like(self.scales))
        return (codes[:, :: self.block] - moved).astype(np.int8)

    def _check(self, codes: np.ndarray, zero_points: np.ndarray | None) -> None:
        """Run the node as it is stored on the first input of each block, where every scale has its part."""
        first = codes[:, :: self.block].astype(np.float32)
        meant = (first if zero_points is None else first - zero_points) * self.scales
        if not np.array_equal(self._first_of_blocks(self.scales), meant, equal_nan=True):
            raise RunError("onnxruntime multiplies by another matrix than the stored integers and scales make.")

    def _first_of_blocks(self, scales: np.ndarray) -> np.ndarray:
        """float32 [rows, blocks]: what the node multiplies the first input of each block by."""
        probes = np.eye(self.columns, dtype=np.float32)[:: self.block]
        return _multiply(probes, self.bits, self.block, self.codes, scales, self.zero_points).T

    def _of_groups(self, values: np.ndarray) -> np.ndarray:
        """One value a group out of one a block; all of them if a group's differ, which then equals no weight."""
        per_group = values.shape[1] if self.group_size is None else self.group_size // self.block
        grouped = values.reshape(self.rows, -1, per_group)
        is_uniform = (grouped == grouped[:, :, :1]).all()
        return np.ascontiguousarray(grouped[:, :, 0]) if is_uniform else values


def _multiply(
    features: np.ndarray,
    bits: int,
    block: int,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None = None,
) -> np.ndarray:
    """`features` [M, K] times a stored matrix, in a model of one MatMulNBits node: float32 [M, N]."""
    tensors = {"codes": codes, "scales": scales} | ({} if zero_points is None else {"zero_points": zero_points})
    shape = {"K": features.shape[1], "N": len(codes), "bits": bits, "block_size": block, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", ["features", *tensors], ["product"], domain="com.microsoft", **shape)
    graph = helper.make_graph(
        [node],
        "matrix",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, features.shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, (len(features), len(codes)))],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"features": features})[0]


def _split_quantized(architecture: Architecture, name: str, weight: QuantizedWeight) -> Iterator[tuple[str, Weight]]:
    for part, rows in _parts(architecture, name):
        points = None if weight.zero_points is None else weight.zero_points[rows]
        yield part, QuantizedWeight(weight.codes[rows], weight.scales[rows], points, weight.scheme)


def _split_rows(architecture: Architecture, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, Weight]]:
    for part, rows in _parts(architecture, name):
        yield part, tensor[rows]


def _parts(architecture: Architecture, name: str) -> Iterator[tuple[str, slice]]:
    """Checkpoint names and rows of an initializer: q, k and v, or all of it."""
    if "qkv_proj" not in name:
        yield name, slice(None)
        return
    start = 0
    for letter, heads in zip("qkv", (architecture.heads, architecture.kv_heads, architecture.kv_heads), strict=True):
        end = start + heads * architecture.head_dim
        yield name.replace("qkv_proj", f"{letter}_proj"), slice(start, end)
        start = end
