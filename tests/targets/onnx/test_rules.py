"""The rules of structure hold for what is written, and each of them can be broken."""

import json

import onnx
import pytest

from compressor.quantized import Scheme
from targets.onnx.rules import check_folder, external_tensors
from targets.onnx.target import OnnxInt4


@pytest.fixture
def root(tiny_model, quantize, lower):
    return lower(OnnxInt4(), quantize(tiny_model("qwen3", tied=False), Scheme(4, 32)))[0].root


def test_what_is_written_keeps_all_rules(root):
    assert check_folder(root) == []
    tensors = list(external_tensors(root))
    assert {tensor.file for tensor in tensors} == {"model.onnx.data"}
    assert max(tensor.end for tensor in tensors) == (root / "model.onnx.data").stat().st_size


def edit(root, change):
    model = onnx.load(root / "model.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, root / "model.onnx")


def longer(graph):
    next(tensor for tensor in graph.initializer if tensor.external_data).dims[0] += 1


def overlapping(graph):
    first, second = [tensor for tensor in graph.initializer if tensor.external_data][:2]
    offset = next(entry for entry in second.external_data if entry.key == "offset")
    offset.value = next(entry.value for entry in first.external_data if entry.key == "offset")


def rename_input(graph):
    next(node for node in graph.node if node.op_type == "MatMulNBits").input[0] = "nothing"


def make_twice(graph):
    graph.node.append(graph.node[-1])


def lose_output(graph):
    graph.node.remove(next(node for node in graph.node if "logits" in node.output))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (longer, "its shape takes"),
        (overlapping, "starts within the tensor before it"),
        (rename_input, "reads nothing, which nothing before it makes"),
        (make_twice, "which is made before"),
        (lose_output, "Nothing makes the output logits"),
        (lambda graph: graph.input.pop(), "which is none of the graph's inputs"),
    ],
)
def test_a_broken_graph_is_described(root, change, sentence):
    edit(root, change)
    assert any(sentence in broken for broken in check_folder(root))


def test_a_data_file_that_is_too_short_is_described(root):
    with (root / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    assert any("model.onnx.data does not reach to the end of" in broken for broken in check_folder(root))


def test_another_number_of_layers_is_described(root):
    path = root / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(config))
    assert any("describes 3 layers" in broken for broken in check_folder(root))


@pytest.mark.parametrize("name", ["config.json", "genai_config.json", "model.onnx"])
@pytest.mark.parametrize("content", [None, b"\xff{"])
def test_files_that_cannot_be_read_are_described(root, name, content):
    (root / name).unlink()
    if content is not None:
        (root / name).write_bytes(content)
    (broken,) = check_folder(root)
    assert name in broken
