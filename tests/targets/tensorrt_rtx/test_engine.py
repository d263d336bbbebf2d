"""Weights are found in a file as the builder lays them: in one run, transposed, or row by row beside others."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from targets.onnx.weights import DataFile
from targets.tensorrt_rtx.engine import find, lies_at, stored_tensors

NOISE = np.random.default_rng(1)


def nibbles(values: np.ndarray) -> np.ndarray:
    pairs = values.astype(np.uint8).reshape(-1, 2) & 15
    return pairs[:, 0] | pairs[:, 1] << 4


@pytest.fixture
def matrices(tmp_path):
    """An ONNX file of an int4, an int8 and a float16 matrix of 24 rows, and a vector: their values by name."""
    random = np.random.default_rng(0)
    values = {
        "four": random.integers(-8, 8, (24, 32), np.int8),
        "eight": random.integers(-128, 128, (24, 16), np.int8),
        "half": random.standard_normal((24, 16)).astype(np.float16),
        "vector": random.standard_normal(24).astype(np.float16),
    }
    with closing(DataFile(tmp_path)) as data:
        data.append({"four": (24, 32)}, TensorProto.INT4, 384, [torch.from_numpy(nibbles(values["four"]))])
        data.append({"eight": (24, 16)}, TensorProto.INT8, 384, [torch.from_numpy(values["eight"])])
        for name in ("half", "vector"):
            data.write({name: values[name].shape}, torch.float16, [torch.from_numpy(values[name])])
    graph = helper.make_graph([], "weights", [], [], data.initializers)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return values


def as_bytes(name: str, values: np.ndarray) -> bytes:
    return (nibbles(values) if name == "four" else np.ascontiguousarray(values)).tobytes()


def engine_of(path, *parts: bytes):
    """A file of these parts, with noise between them."""
    engine = path / "model.engine"
    engine.write_bytes(b"".join(NOISE.bytes(64) + part for part in parts))
    return engine


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["four", "eight", "half"])
def test_in_one_run(matrices, tmp_path, name, transposed):
    values = matrices[name].T if transposed else matrices[name]
    engine = engine_of(tmp_path, as_bytes(name, values), as_bytes("vector", matrices["vector"]))
    tensors = stored_tensors(tmp_path)
    places = find(tmp_path, engine, tensors)
    assert places.keys() == {name, "vector"}
    assert (places[name].offset, places[name].transposed, places[name].rows) == (64, transposed, 1)
    assert lies_at(tmp_path, engine, tensors[name], places[name])


@pytest.mark.parametrize("name", ["four", "eight", "half"])
def test_beside_others(matrices, tmp_path, name):
    """As the builder joins q, k and v: each row behind the same row of another matrix."""
    row = len(as_bytes(name, matrices[name])) // 24
    joined = b"".join(NOISE.bytes(32) + as_bytes(name, line) for line in matrices[name])
    engine, tensors = engine_of(tmp_path, joined), stored_tensors(tmp_path)
    place = find(tmp_path, engine, tensors)[name]
    assert (place.offset, place.stride, place.rows, place.length) == (64 + 32, row + 32, 24, 24 * row)
    assert lies_at(tmp_path, engine, tensors[name], place)
    damaged = bytearray(engine.read_bytes())
    damaged[place.offset + place.span - 1] ^= 1
    engine.write_bytes(damaged)
    assert not lies_at(tmp_path, engine, tensors[name], place)
    assert find(tmp_path, engine, tensors) == {}


def test_a_file_that_ends_early_holds_nothing(matrices, tmp_path):
    engine, tensors = engine_of(tmp_path, as_bytes("eight", matrices["eight"])), stored_tensors(tmp_path)
    place = find(tmp_path, engine, tensors)["eight"]
    engine.write_bytes(engine.read_bytes()[:-1])
    assert not lies_at(tmp_path, engine, tensors["eight"], place)
    assert find(tmp_path, engine, tensors) == {}
