"""The engine targets: refusals, and where the builder is installed a real engine with the weights found in it."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.plan import check_plan
from compressor.quantized import Activations, Scheme
from compressor.registry import make_pass, make_target, parse_spec
from compressor.target import Artifact
from targets.tensorrt_rtx import target as module
from targets.tensorrt_rtx.description import ENGINE, PACKAGE, Description
from targets.tensorrt_rtx.shapes import Limits, input_shapes
from targets.tensorrt_rtx.target import TrtRtxInt4, TrtRtxInt8

needs_builder = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="TensorRT-RTX is not installed: [trtrtx]")
SCHEMES = {"model.layers.0.mlp.down_proj": Scheme(4, 32)}


@pytest.fixture
def architecture(tiny_model):
    return Checkpoint.open(tiny_model("llama")).architecture


def test_a_missing_builder_is_refused_with_the_command_that_installs_it(tiny_model, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"by TensorRT-RTX, which is missing; pip install 'llmc-compiler\[trtrtx"):
        check_plan(Checkpoint.open(tiny_model("llama")), [make_pass("rtn", {"group_size": 32})], TrtRtxInt4())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("sm=90", "TensorRT-RTX builds for sm=75+80+86+89+120+121 or some of these, not for 90."),
        ("max_length=513", "max_length=513 is not within the model's context of 512."),
        ("max_step=0", "max_step=0 is not within max_length=512."),
        ("max_length=100,max_step=101", "max_step=101 is not within max_length=100."),
        ("max_batch=0", "max_batch=0 is no number of rows; 1 works."),
    ],
)
def test_options_that_do_not_fit(architecture, options, problem):
    target = make_target(*parse_spec(f"trtrtx-int4:{options}"))
    assert target.problems(architecture, SCHEMES) == [problem]


def test_capabilities_are_spelled_as_they_are_read():
    target = make_target(*parse_spec("trtrtx-int4:sm=89+120"))
    assert target.sm == (89, 120)
    assert target.spelled() == "trtrtx-int4:sm=89+120"
    assert make_target(*parse_spec("trtrtx-int4:sm=120")).sm == (120,)


def test_what_the_parser_does_not_take(architecture):
    (problem,) = TrtRtxInt8().problems(architecture, SCHEMES)
    assert "the target trtrtx-int4 works" in problem


@pytest.mark.parametrize(("target", "other"), [(TrtRtxInt8(), "onnx-qdq-int8"), (TrtRtxInt4(), "onnx-qdq-int4")])
def test_int8_in_groups_is_what_the_builder_unpacks(architecture, target, other):
    found = target.problems(architecture, SCHEMES | {"model.layers.0.mlp.up_proj": Scheme(8, 32)})
    (problem,) = [one for one in found if "int8 in groups of 32" in one]
    assert f"group_size=channel works, or the target {other}" in problem


def test_shapes_fit_together(architecture):
    shapes = input_shapes(architecture, Limits(batch=3, length=100, step=40))
    assert shapes["input_ids"] == ((1, 1), (3, 1), (3, 40))
    assert shapes["past_key_values.1.value"] == ((1, 2, 0, 16), (3, 2, 50, 16), (3, 2, 99, 16))
    for kind in range(3):
        total = shapes["input_ids"][kind][1] + shapes["past_key_values.0.key"][kind][2]
        assert shapes["attention_mask"][kind] == (shapes["input_ids"][kind][0], total)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


@pytest.fixture
def built(tiny_model, quantize, kept):
    """An int4 artifact with its checkpoint, one layer and two GPUs; built once."""
    target = TrtRtxInt4(sm=(86, 120), max_length=64)
    checkpoint = quantize(tiny_model("llama", num_hidden_layers=1), Scheme(4, 32))
    if not (kept / ENGINE).exists():
        target.lower(checkpoint, kept, lambda what, done, total: None)
    return target, Artifact(kept, target.name), checkpoint


@needs_builder
def test_every_weight_lies_in_the_engine_bit_for_bit(built, verified):
    target, artifact, checkpoint = built
    assert verified(target, artifact, checkpoint).mismatches == []
    assert target.broken_rules(artifact) == []
    places, engine = Description.read(artifact.root).weights, (artifact.root / ENGINE).read_bytes()
    for layer in checkpoint.schemes:
        codes, place = checkpoint.read([f"{layer}.weight"])[f"{layer}.weight"].codes, places[f"{layer}.weight.codes"]
        nibbles = (codes if place.transposed else codes.T).flatten() & 15
        packed = (nibbles[0::2] | nibbles[1::2] << 4).numpy().tobytes()
        assert engine[place.offset : place.offset + place.length] == packed


@needs_builder
def test_a_changed_byte_of_the_engine_is_found_and_located(built, verified):
    target, artifact, checkpoint = built
    ranges = {one.name: one for one in target.stored_tensors(artifact) if one.file == ENGINE}
    place = ranges["model.layers.0.mlp.up_proj.weight.codes"]
    original = (artifact.root / ENGINE).read_bytes()
    damaged = bytearray(original)
    damaged[place.start] ^= 1
    (artifact.root / ENGINE).write_bytes(damaged)
    try:
        with pytest.raises(RunError, match=r"holds another model.layers.0.mlp.up_proj.weight.codes"):
            verified(target, artifact, checkpoint)
        (artifact.root / ENGINE).write_bytes(original[1:])
        short, unknown = target.broken_rules(artifact)
        assert "bytes" in short
        assert "does not know" in unknown
    finally:
        (artifact.root / ENGINE).write_bytes(original)


@needs_builder
def test_int8_activations(tiny_model, quantize, lower, verified):
    """Here the builder joins what reads the same input, and multiplies scales; the integers are there all the same."""
    target = TrtRtxInt8(sm=(89,), max_length=64)
    scheme = Scheme(8, None, activations=Activations(dynamic=False))
    checkpoint = quantize(tiny_model("llama", num_hidden_layers=1), scheme)
    artifact, notes = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    places = Description.read(artifact.root).weights
    assert places["model.layers.0.self_attn.k_proj.weight.codes"].rows == 64
    assert "the integers of 7 linears lie in it bit for bit" in notes[-2]
    assert "lie in the engine in another form" in notes[-1]


@needs_builder
def test_inputs_are_multiplied_by_their_factors(tiny_model, quantize, multiplied, lower, verified):
    target = TrtRtxInt4(sm=(86,), max_length=64, dtype="float32")
    checkpoint = multiplied(quantize(tiny_model("llama", num_hidden_layers=1), Scheme(4, 32)), "o_proj", "down_proj")
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []


@needs_builder
def test_integers_that_have_no_place_are_found(built, verified, tmp_path):
    from dataclasses import replace

    target, artifact, checkpoint = built
    for path in artifact.root.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    described = Description.read(tmp_path)
    rest = {name: place for name, place in described.weights.items() if "o_proj" not in name}
    replace(described, weights=rest).write(tmp_path)
    with pytest.raises(RunError, match=r"does not say where model.layers.0.self_attn.o_proj.weight.codes lies"):
        verified(target, Artifact(tmp_path, target.name), checkpoint)


@needs_builder
def test_a_description_without_its_engine(built, tmp_path):
    target, artifact, _ = built
    for path in artifact.root.iterdir():
        if path.name != ENGINE:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (problem,) = target.broken_rules(Artifact(tmp_path, target.name))
    assert "cannot be read" in problem


@needs_builder
def test_integers_that_the_builder_changes_are_refused(tiny_model, quantize, tmp_path, monkeypatch):
    """As it would unpack int4 without blocks: then nothing proves the engine's numbers."""
    from targets.tensorrt_rtx import builder, engine

    checkpoint = quantize(tiny_model("llama", num_hidden_layers=1), Scheme(4, 32))
    monkeypatch.setattr(builder, "build", lambda graph, path, *_: path.write_bytes(b"engine"))
    monkeypatch.setattr(engine, "find", lambda root, path, tensors: {})
    with pytest.raises(RunError, match="does not hold the integers") as error:
        TrtRtxInt4().lower(checkpoint, tmp_path, lambda *_: None)
    assert error.value.hint == "The target onnx-qdq-int4 writes the ONNX alone."


@needs_builder
def test_an_interrupt_stops_the_build(tiny_model, quantize, tmp_path):
    import signal

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("TensorRT-RTX"):
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        TrtRtxInt4(max_length=64).lower(
            quantize(tiny_model("llama", num_hidden_layers=1), Scheme(4, 32)), tmp_path, interrupt
        )
    assert signal.getsignal(signal.SIGINT) is handler


@needs_builder
def test_a_graph_that_the_parser_refuses_is_one_sentence(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    from targets.tensorrt_rtx.builder import build

    node = helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "strange", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(RunError, match="does not take the graph"):
        build(tmp_path / "model.onnx", tmp_path / ENGINE, (89,), {}, lambda *_: None)


def test_the_command_names_every_input(architecture, tiny_model):
    config = json.loads((tiny_model("llama") / "config.json").read_text())
    command = TrtRtxInt4(max_length=100).run_command("artifact", config)
    assert command.startswith(
        "tensorrt_rtx --loadEngine=artifact/model.engine --shapes=input_ids:1x1,attention_mask:1x51,"
    )
    assert command.count("past_key_values") == 4


def test_opening_says_why_not(tmp_path):
    with pytest.raises((RunError, InputError), match="needs an NVIDIA GPU"):
        TrtRtxInt4().open(Artifact(tmp_path, "trtrtx-int4"))
