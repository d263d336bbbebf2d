"""Recovers integers, scales and zero points of a stored weight by running the node that uses it in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme

OUTPUT_BYTES = 64 << 20  # of one run of a node


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
        return cls(
            values["bits"],
            values["block_size"],
            values["N"],
            values["K"],
            _group_size(node),
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
        self._check(codes, zero_points)
        return _weight(codes, self.scales, zero_points, self.bits, self.group_size, self.block)

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


@dataclass(frozen=True)
class QuantizedTable:
    """A GatherBlockQuantized node taken out of its graph, with the bytes it is stored with."""

    bits: int
    block: int
    group_size: int | None
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None

    @classmethod
    def of(cls, node: NodeProto, stored: Mapping[str, np.ndarray]) -> QuantizedTable:
        values = {attribute.name: attribute.i for attribute in node.attribute}
        group_size = _group_size(node)
        arrays = (stored["codes"], stored["scales"], stored.get("zero_points"))
        return cls(values["bits"], values["block_size"], group_size, *arrays)

    def recover(self) -> QuantizedWeight:
        """The weight in its integers: every row is looked up.

        Raises:
            RunError: a row is not what its integers, scales and zero points make.
        """
        parts = [self._recover(rows) for rows in self._chunks()]
        codes = np.concatenate([codes for codes, _ in parts])
        zero_points = None if self.zero_points is None else np.concatenate([points for _, points in parts])
        return _weight(codes, self.scales, zero_points, self.bits, self.group_size, self.block)

    def _chunks(self) -> Iterator[slice]:
        step = max(1, OUTPUT_BYTES // (4 * self.codes.shape[1] * 8 // self.bits))
        return (slice(start, start + step) for start in range(0, len(self.codes), step))

    def _recover(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Codes and zero points, int8 [rows, columns] and [rows, blocks], of some rows."""
        codes, scales = self.codes[rows], self.scales[rows]
        stored_points = None if self.zero_points is None else self.zero_points[rows]
        ones = np.ones_like(scales)
        integers = self._look_up(codes, ones)
        points = (integers - self._look_up(codes, ones, stored_points))[:, :: self.block]
        meant = (integers - self._over_blocks(points)) * self._over_blocks(scales)
        if not np.array_equal(self._look_up(codes, scales, stored_points), meant, equal_nan=True):
            raise RunError("onnxruntime looks up another table than the stored integers and scales make.")
        return integers.astype(np.int8), points.astype(np.int8)

    def _over_blocks(self, values: np.ndarray) -> np.ndarray:
        """Values [rows, blocks] as [rows, columns]."""
        return np.repeat(values, self.block, axis=1)[:, : self.codes.shape[1] * 8 // self.bits]

    def _look_up(self, codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None = None) -> np.ndarray:
        """float32 [rows, columns]: all rows of a stored table, by a model of one node."""
        inputs = {"codes": codes, "tokens": np.arange(len(codes)), "scales": scales, "zero_points": zero_points}
        attributes = {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}
        return _run("GatherBlockQuantized", inputs, "tokens", attributes)


def _group_size(node: NodeProto) -> int | None:
    """The group size before scales were repeated over smaller blocks; None is one scale a row."""
    size = {entry.key: entry.value for entry in node.metadata_props}["group_size"]
    return None if size == "channel" else int(size)


def _weight(
    codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, bits: int, group_size: int | None, block: int
) -> QuantizedWeight:
    """A weight of codes [rows, columns] with scales and zero points [rows, blocks]."""
    points = None if zero_points is None else torch.from_numpy(_of_groups(zero_points, group_size, block))
    scheme = Scheme(bits, group_size, zero_points is None)
    return QuantizedWeight(
        torch.from_numpy(codes), torch.from_numpy(_of_groups(scales, group_size, block)), points, scheme
    )


def _of_groups(values: np.ndarray, group_size: int | None, block: int) -> np.ndarray:
    """One value a group out of one a block; all of them if a group's differ, which then equals no weight."""
    per_group = values.shape[1] if group_size is None else group_size // block
    grouped = values.reshape(len(values), -1, per_group)
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
    inputs = {"features": features, "codes": codes, "scales": scales, "zero_points": zero_points}
    shape = {"K": features.shape[1], "N": len(codes), "bits": bits, "block_size": block, "accuracy_level": 0}
    return _run("MatMulNBits", inputs, "features", shape)


def _run(operator: str, inputs: Mapping[str, np.ndarray | None], fed: str, attributes: Mapping[str, Any]) -> np.ndarray:
    """The float32 output of one node. Its inputs are given in order; all but the one that is fed are initializers."""
    arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items() if value is not None}
    node = helper.make_node(operator, list(arrays), ["output"], domain="com.microsoft", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(arrays[fed].dtype)
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info(fed, kind, arrays[fed].shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items() if name != fed],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a session a probe: none is worth it
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {fed: arrays[fed]})[0]
