import onnx
import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from targets.onnx.file import GRAPH, damage_told, load_graph
from targets.onnx.reader import read_weights
from targets.onnx.session import OnnxSession
from targets.onnx.target import OnnxFp32


@pytest.fixture
def forged(tiny_model, lower, tmp_path):
    """`forged(key, value)`: an artifact that says something else of the place of a tensor."""

    def make(key, value):
        root = lower(OnnxFp32(), Checkpoint.open(tiny_model("llama")))[0].root
        model = onnx.load(root / GRAPH, load_external_data=False)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        next(entry for entry in tensor.external_data if entry.key == key).value = value
        onnx.save(model, root / GRAPH)
        return root

    return make


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "a/../../secret"])
def test_weights_outside_of_the_folder(forged, location):
    root = forged("location", location)
    for open_it in (load_graph, lambda root: list(read_weights(root)), lambda root: OnnxSession(root).prefill([[1]])):
        with pytest.raises(InputError, match=r"model\.onnx names a file outside of its folder"):
            open_it(root)


@pytest.mark.parametrize(("key", "value"), [("offset", "-8"), ("length", "-8"), ("offset", "x")])
def test_places_that_are_none(forged, key, value):
    with pytest.raises(InputError, match="says no place of tensor"):
        load_graph(forged(key, value))


def test_what_is_no_graph(tmp_path):
    (tmp_path / GRAPH).write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="is not an ONNX file"):
        load_graph(tmp_path)
    (tmp_path / GRAPH).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_graph(tmp_path)


def test_places_within_nodes_are_looked_at_too(tmp_path):
    tensor = onnx.TensorProto(name="inner", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    node = onnx.helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], [])), tmp_path / GRAPH)
    with pytest.raises(InputError, match="names a file outside of its folder"):
        load_graph(tmp_path)


@pytest.mark.parametrize("fault", [NameError, AttributeError, TypeError, MemoryError, NotImplementedError])
def test_a_fault_of_a_reader_is_no_damage(tmp_path, fault):
    with pytest.raises(fault), damage_told(tmp_path):
        raise fault


@pytest.mark.parametrize("damage", [KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError])
def test_damage_is_told(tmp_path, damage):
    with pytest.raises(InputError, match=r"model\.onnx is damaged"), damage_told(tmp_path):
        raise damage
