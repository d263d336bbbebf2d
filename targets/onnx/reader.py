"""Reads the weights of an artifact back, with onnx for the file and onnxruntime for the integers.

Which bit belongs to which weight is onnxruntime's to say: every quantized matrix is multiplied with a unit matrix by
the kernel that will serve it, and every row of a quantized embedding is looked up (see `probes.py`). Nothing here comes
from the modules that wrote the files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper

from compressor.architecture import Architecture, read_config, resolve
from compressor.checkpoint import Weight
from compressor.errors import InputError, RunError
from compressor.low_rank import LowRank
from compressor.quantized import QuantizedWeight
from targets.onnx.branches import DOWN, UP, Branch, find_branches
from targets.onnx.file import GRAPH, damage_told, load_graph, read_bytes
from targets.onnx.probes import QuantizedMatrix, QuantizedTable

# Which input of an operator is a weight.
WEIGHT_INPUTS = {
    "Gather": 0,
    "GatherBlockQuantized": 0,
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
    "LayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "FusedMatMul": 1,
    "Add": 1,
    "MatMulNBits": 1,
}
BIASES = {"LayerNormalization": 2, "SkipLayerNormalization": 3}  # beside the weight
INPUTS = {
    "MatMulNBits": ("features", "codes", "scales", "zero_points", "order", "bias"),
    "GatherBlockQuantized": ("codes", "tokens", "scales", "zero_points"),
}
PROBES: Mapping[str, type[QuantizedMatrix] | type[QuantizedTable]] = {
    "MatMulNBits": QuantizedMatrix,
    "GatherBlockQuantized": QuantizedTable,
}
BFLOAT16 = TensorProto.BFLOAT16  # has no type in numpy


def read_weights(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every parameter of the artifact's graph under its checkpoint name, one matrix in memory at a time.

    Raises:
        InputError: the graph is damaged.
        RunError: onnxruntime computes with other numbers than the file holds, or a head with others than the
            embedding that it is tied to; or the file is not whole.
    """
    with damage_told(root):
        yield from _weights(_Folder.open(root))


def _weights(folder: _Folder) -> Iterator[tuple[str, Weight]]:
    yield from folder.factored()
    quantized: dict[str, bytes] = {}
    for node, name in folder.uses():
        for parameter, weight in folder.parameters(node, name):
            if not isinstance(weight, QuantizedWeight):
                yield parameter, weight
            elif parameter not in quantized:
                quantized[parameter] = _fingerprint(weight)
                yield parameter, weight
            elif quantized[parameter] != _fingerprint(weight):
                raise RunError(
                    f"onnxruntime looks up another {parameter} than the head that is tied to it multiplies by."
                )


@dataclass(frozen=True)
class _Folder:
    """An artifact's graph, with its initializers by name; their data stays in its file."""

    root: Path
    architecture: Architecture
    graph: onnx.GraphProto
    stored: Mapping[str, TensorProto]

    @classmethod
    def open(cls, root: Path) -> _Folder:
        graph = load_graph(root).graph
        return cls(root, resolve(read_config(root)), graph, {tensor.name: tensor for tensor in graph.initializer})

    def uses(self) -> Iterator[tuple[NodeProto, str]]:
        """Each weight that a node computes with, once. Small constants are initializers too, but not external."""
        casts = self._casts
        seen = {name for name in self.stored if name.endswith((DOWN, UP))}
        for node in self.graph.node:
            slots = (table[node.op_type] for table in (WEIGHT_INPUTS, BIASES) if node.op_type in table)
            for used in (node.input[slot] for slot in slots):
                name = casts.get(used, used)
                if name not in seen and name in self.stored and self.stored[name].external_data:
                    seen.add(name)  # a tied embedding is used twice
                    yield node, name

    def parameters(self, node: NodeProto, name: str) -> Iterator[tuple[str, Weight]]:
        """The checkpoint's parameters in the weight `name` of a node."""
        if node.op_type not in INPUTS:
            yield from _split_rows(self.architecture, name, self._widened(self._load(name)))
            return
        inputs = dict(zip(INPUTS[node.op_type], node.input, strict=False))
        arrays = {slot: self._load(used).numpy() for slot, used in inputs.items() if used in self.stored}
        weight = self._multiplied(node, PROBES[node.op_type].of(node, arrays).recover())
        parts = _split_quantized(self.architecture, name.rpartition(".")[0], weight)
        for place, (part, rows) in enumerate(parts):
            branch = self._branches.get(part.removesuffix(".weight"))
            yield part, rows if branch is None else rows.beside(self._beside(node, branch, place))
        if "bias" in arrays:
            yield from _split_rows(self.architecture, inputs["bias"], torch.from_numpy(arrays["bias"]))

    def _multiplied(self, node: NodeProto, weight: QuantizedWeight) -> QuantizedWeight:
        """The weight with what its inputs are multiplied by."""
        _, factors = self._inputs(node)
        if not factors:
            return weight
        scheme = replace(weight.scheme, input_factors=True)
        return replace(weight, scheme=scheme, input_factors=self._load(factors))

    def _inputs(self, node: NodeProto) -> tuple[str, str]:
        """What a product reads, and the stored tensor that it is multiplied by before, or ""."""
        maker = self._makers.get(node.input[0])
        if maker is None or maker.op_type != "Mul":
            return node.input[0], ""
        features, factors = maker.input
        is_stored = factors in self.stored and bool(self.stored[factors].external_data)
        return (features, factors) if is_stored else (node.input[0], "")

    @cached_property
    def _makers(self) -> dict[str, NodeProto]:
        return {output: node for node in self.graph.node for output in node.output}

    def factored(self) -> Iterator[tuple[str, Weight]]:
        """Linears that are factors alone."""
        for layer, branch in self._branches.items():
            if branch.added_to is None:
                yield f"{layer}.weight", self._low_rank(branch)

    @cached_property
    def _casts(self) -> dict[str, str]:
        return {node.output[0]: node.input[0] for node in self.graph.node if node.op_type == "Cast"}

    @cached_property
    def _branches(self) -> dict[str, Branch]:
        return find_branches(self.graph, self._casts)

    def _beside(self, node: NodeProto, branch: Branch, place: int) -> LowRank:
        """Factors beside the matrix of `node`, or a part of it.

        Raises:
            RunError: the graph does not add their product to what that node makes of the same features.
        """
        if (branch.features, branch.added_to, branch.place) != (self._inputs(node)[0], node.output[0], place):
            raise RunError(f"The graph does not add the factors of {node.name} to what it makes of the same features.")
        return self._low_rank(branch)

    def _low_rank(self, branch: Branch) -> LowRank:
        return LowRank(*(self._widened(self._load(name)) for name in (branch.down, branch.up)))

    def _widened(self, tensor: torch.Tensor) -> torch.Tensor:
        """A float weight as the graph computes with it: a float32 graph casts what it has in 16 bits."""
        logits = next(output for output in self.graph.output if output.name == "logits")
        return tensor.float() if logits.type.tensor_type.elem_type == TensorProto.FLOAT else tensor

    def _load(self, name: str) -> torch.Tensor:
        return load(self.root, self.stored[name])


def load(root: Path, tensor: TensorProto) -> torch.Tensor:
    """An external tensor, in one copy of its bytes.

    Raises:
        InputError: its file ends before the tensor does, or its bytes are not those of its shape.
    """
    stored, has_type = read_bytes(root, tensor), tensor.data_type != BFLOAT16
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type) if has_type else np.dtype(np.int16)
    if min(tensor.dims, default=0) < 0 or stored.size != math.prod(tensor.dims) * dtype.itemsize:
        raise InputError(f"{root / GRAPH}: {tensor.name} has {stored.size} bytes, which its shape does not take.")
    loaded = torch.from_numpy(stored.view(dtype).reshape(tensor.dims))
    return loaded if has_type else loaded.view(torch.bfloat16)


def _fingerprint(weight: QuantizedWeight) -> bytes:
    digest = hashlib.sha256()
    for part in (weight.codes, weight.scales, weight.zero_points, weight.input_factors):
        digest.update(b"" if part is None else part.numpy().data)
    return digest.digest()


def _split_quantized(
    architecture: Architecture, name: str, weight: QuantizedWeight
) -> Iterator[tuple[str, QuantizedWeight]]:
    for part, rows in _parts(architecture, name):
        points = None if weight.zero_points is None else weight.zero_points[rows]
        factors = weight.input_factors
        yield (
            part,
            QuantizedWeight(weight.codes[rows], weight.scales[rows], points, weight.scheme, input_factors=factors),
        )


def _split_rows(architecture: Architecture, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, Weight]]:
    for part, rows in _parts(architecture, name):
        yield part, tensor[rows]


def _parts(architecture: Architecture, name: str) -> Iterator[tuple[str, slice]]:
    """Checkpoint names and rows of an initializer: q, k and v, or all of it."""
    is_packed = "qkv_proj" in name and name.rpartition(".")[0] not in architecture.linears()
    if not is_packed:
        yield name, slice(None)
        return
    start = 0
    for letter, heads in zip("qkv", (architecture.heads, architecture.kv_heads, architecture.kv_heads), strict=True):
        end = start + heads * architecture.head_dim
        yield name.replace("qkv_proj", f"{letter}_proj"), slice(start, end)
        start = end
