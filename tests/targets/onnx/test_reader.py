"""Any matrix that the writer packs, the reader recovers through onnxruntime."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import onnx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compressor.quantized import QuantizedWeight, Scheme
from targets.onnx.plan import Matrix
from targets.onnx.probes import QuantizedMatrix
from targets.onnx.reader import load
from targets.onnx.weights import DataFile, _write_matrix


@st.composite
def weights(draw) -> QuantizedWeight:
    bits, symmetric = draw(st.sampled_from([4, 8])), draw(st.booleans())
    group = draw(st.sampled_from([None, 16, 32, 48, 64, 256]))
    rows = draw(st.integers(1, 9))
    columns = draw(st.integers(1, 150)) if group is None else group * draw(st.integers(1, 5))
    scheme = Scheme(bits, group, symmetric)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def integers(width: int) -> torch.Tensor:
        return torch.randint(scheme.lowest, scheme.highest + 1, (rows, width), generator=generator).to(torch.int8)

    groups = columns // scheme.group_width(columns)
    scales = torch.rand(rows, groups, generator=generator).to(torch.bfloat16).float() + 2**-14
    return QuantizedWeight(integers(columns), scales, None if symmetric else integers(groups), scheme)


@given(weight=weights())
@settings(max_examples=40, deadline=None)
def test_packed_weights_are_recovered(weight, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("matrix")
    matrix = Matrix("linear", ("linear",), (len(weight.codes),), weight.codes.shape[1], weight.scheme)
    with closing(DataFile(folder)) as data:
        _write_matrix(data, matrix, {"linear.weight": weight})
    stored = {tensor.name.rpartition(".")[2]: load(folder, tensor).numpy() for tensor in data.initializers}
    found = QuantizedMatrix.of(node_of(matrix, weight.scheme), stored).recover()
    assert found.same_bits(weight)
    assert found.scheme == weight.scheme


def node_of(matrix: Matrix, scheme: Scheme) -> onnx.NodeProto:
    shape = {"K": matrix.columns, "N": matrix.rows[0], "bits": scheme.bits, "block_size": matrix.block}
    node = helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft", **shape)
    node.metadata_props.add(key="group_size", value=str(scheme.group_size or "channel"))
    return node
