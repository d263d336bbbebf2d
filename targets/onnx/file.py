"""Opens the ONNX file of an artifact, without its weights, and finds their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo

from compressor.errors import InputError, LlmcError, first_line
from compressor.inside import inside

GRAPH = "model.onnx"
# What a reader meets in a graph that is not as it should be: a name that is not there, a shape or a value that does not
# fit. Anything else that comes out of a reader is a fault of the reader.
DAMAGE = (LookupError, ValueError, ArithmeticError, RuntimeError)


@contextmanager
def damage_told(root: Path) -> Iterator[None]:
    """Tell what a reader of the graph breaks on. A graph can be broken in any of its parts, and a reader that asked
    about each before it uses it would be twice as long.

    Raises:
        InputError: something broke that was not told in a sentence.
    """
    try:
        yield
    except Exception as error:
        # onnxruntime's own errors have no class in common.
        told = isinstance(error, DAMAGE) or type(error).__module__.startswith("onnxruntime.")
        if not told or isinstance(error, LlmcError | NotImplementedError):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{root / GRAPH} is damaged ({reason}).", "Lower the model again.") from error


def load_graph(root: Path) -> ModelProto:
    """The model in an artifact's folder; the bytes of its weights stay in their files.

    Raises:
        InputError: it is no ONNX file, or a tensor of it lies outside of the folder.
    """
    path = root / GRAPH
    try:
        model = onnx.load(inside(root, GRAPH, root), load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file.", "Lower the model again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    functions = (tensor for function in model.functions for tensor in _in_nodes(function.node))
    for tensor in (*_in_graph(model.graph), *functions):
        if tensor.external_data:
            place_of(root, tensor)
    return model


def _in_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _in_graph(graph)


def place_of(root: Path, tensor: TensorProto) -> ExternalDataInfo:
    """Where a tensor lies that has its bytes in another file of the folder.

    Raises:
        InputError: it says no place in the folder.
    """
    try:
        place = ExternalDataInfo(tensor)
    except ValueError as error:
        raise InputError(f"{root / GRAPH} says no place of tensor {tensor.name}.", "Lower the model again.") from error
    inside(root, place.location, root / GRAPH)
    if min(place.offset or 0, place.length or 0) < 0:
        raise InputError(f"{root / GRAPH} says no place of tensor {tensor.name}.", "Lower the model again.")
    return place


def read_bytes(root: Path, tensor: TensorProto) -> np.ndarray:
    """The bytes of such a tensor, uint8.

    Raises:
        InputError: its file is not there, or ends before the tensor does.
    """
    place = place_of(root, tensor)
    path, length = root / place.location, place.length or 0
    if not path.is_file() or path.stat().st_size < (place.offset or 0) + length:
        raise InputError(f"{path} ends before tensor {tensor.name} does.", "Lower the model again.")
    return np.fromfile(path, np.uint8, length, offset=place.offset or 0)
