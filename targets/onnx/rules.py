"""What must fit together in an ONNX folder: the graph with itself, with its data file and with genai_config.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto, helper

from compressor.architecture import read_config, resolve
from compressor.errors import InputError
from compressor.json_file import read_object
from compressor.target import StoredTensor
from targets.onnx.file import GRAPH, load_graph, place_of

GENAI_CONFIG = "genai_config.json"
HALF_BYTES = (TensorProto.INT4, TensorProto.UINT4)
PER_LAYER = ("past_key_names", "past_value_names", "present_key_names", "present_value_names")


def external_tensors(root: Path) -> Iterator[StoredTensor]:
    """Where each tensor lies that the graph keeps in another file."""
    for tensor in load_graph(root).graph.initializer:
        if tensor.external_data:
            place = place_of(root, tensor)
            start = place.offset or 0
            yield StoredTensor(place.location, tensor.name, start, start + (place.length or 0))


def operators(root: Path) -> set[str]:
    """The operators of the graph, those of other domains than ONNX's with their domain."""
    nodes = load_graph(root).graph.node
    return {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes}


def foreign_operators(root: Path) -> list[str]:
    """A sentence for each operator that the ONNX standard does not have."""
    return [f"{GRAPH} has the operator {name}, which is not ONNX's." for name in sorted(operators(root)) if "." in name]


def check_folder(root: Path) -> list[str]:
    """Every rule that the folder breaks, a sentence each."""
    try:
        layers = resolve(read_config(root)).layers
        model = load_graph(root)
        genai = read_object(root / GENAI_CONFIG)
    except InputError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename} cannot be read ({error.strerror})."]
    return [*_data_rules(root, model), *_graph_rules(model.graph), *_genai_rules(genai, model.graph, layers)]


def _data_rules(root: Path, model: ModelProto) -> Iterator[str]:
    """Each tensor has the bytes that its shape takes, inside of its file and apart from the others."""
    for tensor in model.graph.initializer:
        if tensor.external_data and place_of(root, tensor).length != _nbytes(tensor):
            yield f"{tensor.name} has {place_of(root, tensor).length} bytes; its shape takes {_nbytes(tensor)}."
    ends: dict[str, int] = {}
    for tensor in sorted(external_tensors(root), key=lambda tensor: (tensor.file, tensor.start)):
        path = root / tensor.file
        if not path.is_file() or path.stat().st_size < tensor.end:
            yield f"{tensor.file} does not reach to the end of {tensor.name}."
        if tensor.start < ends.get(tensor.file, 0):
            yield f"{tensor.name} starts within the tensor before it."
        ends[tensor.file] = tensor.end


def _graph_rules(graph: GraphProto) -> Iterator[str]:
    """Each value is made before it is used, and none twice."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in made:
                yield f"{node.op_type} {node.name} reads {name}, which nothing before it makes."
        for name in filter(None, node.output):
            if name in made:
                yield f"{node.op_type} {node.name} makes {name}, which is made before."
            made.add(name)
    for value in graph.output:
        if value.name not in made:
            yield f"Nothing makes the output {value.name}."


def _genai_rules(genai: dict, graph: GraphProto, layers: int) -> Iterator[str]:
    """The file that onnxruntime-genai drives the graph by names what the graph has."""
    decoder = genai["model"]["decoder"]
    if decoder["filename"] != GRAPH or decoder["num_hidden_layers"] != layers:
        yield f"{GENAI_CONFIG} describes {decoder['num_hidden_layers']} layers in {decoder['filename']}."
    for kind, values in (("inputs", graph.input), ("outputs", graph.output)):
        present = {value.name for value in values}
        for key, name in decoder[kind].items():
            for wanted in [name % index for index in range(layers)] if key in PER_LAYER else [name]:
                if wanted not in present:
                    yield f"{GENAI_CONFIG} names {wanted}, which is none of the graph's {kind}."


def _nbytes(tensor: TensorProto) -> int:
    count = math.prod(tensor.dims)
    if tensor.data_type in HALF_BYTES:
        return (count + 1) // 2
    return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
