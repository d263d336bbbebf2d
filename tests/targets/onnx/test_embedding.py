"""A quantized embedding is looked up as it is, and a head that is tied to it multiplies by the very same bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.errors import RunError
from compressor.quantized import Scheme
from targets.onnx.target import OnnxFp16, OnnxFp32, OnnxInt4, OnnxInt8

EMBEDDING = "model.embed_tokens"

TABLE = Scheme(8, None, table=True)  # what the pass embeddings makes
BODY = Scheme(4, 32)
OTHER_TABLES = [
    Scheme(bits, group, symmetric) for bits in (4, 8) for group in (32, None) for symmetric in (True, False)
]
TABLES = [
    Scheme(bits, group, symmetric, table=True)
    for bits in (4, 8)
    for group in (32, 96, None)
    for symmetric in (True, False)
]


def initializers(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Where the data of each external initializer lies: file, offset and length."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
    return {tensor.name: tuple(entry.value for entry in tensor.external_data) for tensor in tensors}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("target", [OnnxInt4(), OnnxInt8()], ids=lambda target: target.name)
def test_int8_embedding(tiny_model, quantize, assert_exact, target, family, tied):
    checkpoint = quantize(tiny_model(family, tied), Scheme(target.bits, 32), {EMBEDDING: TABLE})
    model = assert_exact(target, checkpoint)
    stored = initializers(model)
    rows = stored[f"{EMBEDDING}.weight.rows"]
    assert operators(model).count("GatherBlockQuantized") == 1
    assert "Gather" not in operators(model)
    assert model.graph.node[-1].op_type == ("MatMulNBits" if tied else "FusedMatMul")
    # The one other name that these bytes have is that of the tied head's codes.
    assert [name for name, place in stored.items() if place == rows and not name.endswith(".rows")] == (
        [f"{EMBEDDING}.weight.codes"] if tied else []
    )
    assert {name for name in stored if EMBEDDING in name} == {
        f"{EMBEDDING}.weight.{part}" for part in ("rows", "scales", *(["codes"] if tied else []))
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scheme", TABLES, ids=str)
def test_embeddings_of_every_scheme(tiny_model, quantize, assert_exact, scheme, tied):
    """96 features are three groups of 32: zero points of int4 end in half a byte."""
    checkpoint = quantize(tiny_model("llama", tied, hidden_size=96), BODY, {EMBEDDING: scheme})
    assert checkpoint.schemes[EMBEDDING] == scheme
    model = assert_exact(OnnxInt4(), checkpoint)
    stored = initializers(model)
    rows, codes = (stored.get(f"{EMBEDDING}.weight.{part}") for part in ("rows", "codes"))
    assert codes == (rows if tied else None)
    assert int(rows[2]) == 96 * scheme.bits // 8 * checkpoint.architecture.vocab_size


@pytest.mark.parametrize("scheme", OTHER_TABLES, ids=str)
def test_tables_from_elsewhere(tiny_model, quantize, assert_exact, scheme):
    """Folders of compressed-tensors may have an embedding packed like a linear, with groups and zero points."""
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64), {EMBEDDING: scheme})
    assert checkpoint.schemes[EMBEDDING] == scheme
    assert_exact(OnnxInt4(), checkpoint)


@pytest.mark.parametrize(
    "scheme", [BODY, Scheme(4, None), Scheme(4, 64, False), Scheme(8, 32), Scheme(8, None)], ids=str
)
@pytest.mark.parametrize("table", [None, TABLE], ids=["float table", "int8 table"])
def test_quantized_head(tiny_model, quantize, assert_exact, scheme, table):
    checkpoint = quantize(tiny_model("llama", False), BODY, {"lm_head": scheme, EMBEDDING: table})
    model = assert_exact(OnnxInt4(), checkpoint)
    head = model.graph.node[-1]
    assert (head.op_type, head.input[1]) == ("MatMulNBits", "lm_head.weight.codes")
    level = {attribute.name: attribute.i for attribute in head.attribute}["accuracy_level"]
    assert level == 4


@pytest.mark.parametrize(
    ("head", "level"), [({"lm_head": BODY}, 0), ({"lm_head": Scheme(8, 32)}, 4), ({EMBEDDING: TABLE}, 4)]
)
def test_accuracy_level_of_the_head(tiny_model, quantize, lower, head, level):
    """int8 heads stay at the fast level, and the ledger says so."""
    tied = EMBEDDING in head
    artifact, notes = lower(OnnxInt4(accuracy_level=0), quantize(tiny_model("llama", tied), BODY, head))
    node = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph.node[-1]
    assert {attribute.name: attribute.i for attribute in node.attribute}["accuracy_level"] == level
    said = ["1 int8 linears compute at accuracy level 4: level 0 is 20 times slower there"]
    assert notes == (said if level else [])


def test_an_embedding_alone_is_no_linear(tiny_model, quantize, lower):
    _, notes = lower(OnnxInt4(accuracy_level=0), quantize(tiny_model("llama", False), BODY, {EMBEDDING: TABLE}))
    assert notes == []


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("suffix", ["rows", "scales", "zero_points"])
def test_one_flipped_bit_is_found(tiny_model, quantize, lower, verified, flip_bit, tied, suffix):
    checkpoint = quantize(tiny_model("llama", tied), BODY, {EMBEDDING: Scheme(8, 32, False)})
    artifact, _ = lower(OnnxInt4(), checkpoint)
    flip_bit(artifact.root, f"{EMBEDDING}.weight.{suffix}")
    assert verified(OnnxInt4(), artifact, checkpoint).mismatches == [f"{EMBEDDING}.weight"]


def test_a_head_with_other_bytes_than_the_embedding_is_found(tiny_model, quantize, lower, verified):
    checkpoint = quantize(tiny_model("llama"), BODY, {EMBEDDING: TABLE})
    artifact, _ = lower(OnnxInt4(), checkpoint)
    model = onnx.load(artifact.root / "model.onnx", load_external_data=False)
    codes = next(tensor for tensor in model.graph.initializer if tensor.name == f"{EMBEDDING}.weight.codes")
    offset = next(entry for entry in codes.external_data if entry.key == "offset")
    offset.value = str(int(offset.value) + 1)
    onnx.save(model, artifact.root / "model.onnx")
    with pytest.raises(RunError, match=f"looks up another {EMBEDDING}.weight than the head"):
        verified(OnnxInt4(), artifact, checkpoint)


def test_padding_and_decoding(tiny_model, quantize, lower, computed, tokens):
    """The table is looked up for any shape of tokens."""
    checkpoint = quantize(tiny_model("llama"), BODY, {EMBEDDING: TABLE})
    artifact, _ = lower(OnnxInt4(), checkpoint)
    every = computed(OnnxInt4(), artifact, tokens)
    session = OnnxInt4().open(artifact, threads=1)
    assert session.prefill(np.stack([tokens[:-1], tokens[1:]])) == every[-2].argmax()
    assert session.decode(int(tokens[-1])) == every[-1].argmax()


def test_what_is_refused(tiny_model, quantize):
    architecture = quantize(tiny_model("llama"), BODY).architecture
    target = OnnxInt4()
    assert target.embedding_problems(architecture, TABLE) == []
    (problem,) = target.embedding_problems(architecture, Scheme(8, None, type="float"))
    assert problem == "onnxruntime looks up int4 and int8 embeddings, not fp8 channel; choose target hf."
    (problem,) = target.embedding_problems(architecture, Scheme(4, 24))
    assert "use group_size=32, 64 or 128" in problem
    assert not OnnxFp32.holds_quantized_embedding
    assert not OnnxFp16.holds_quantized_embedding
    assert OnnxInt8.holds_quantized_embedding


def test_widths_that_would_be_padded_are_refused(tiny_model):
    from compressor.checkpoint import Checkpoint

    architecture = Checkpoint.open(tiny_model("llama", hidden_size=72)).architecture
    (problem,) = OnnxInt8().embedding_problems(architecture, TABLE)
    assert problem == (
        "onnxruntime takes a quantized embedding of a width that is a multiple of 16, not 72; "
        "leave out the pass embeddings."
    )
