"""Sessions run the shipped graph, and an all-positions one made from it in memory."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from compressor.checkpoint import Checkpoint
from compressor.measure.answers import Continuation, SessionAnswerer
from compressor.quantized import Scheme
from targets.onnx import session as onnx_session
from targets.onnx.qdq.target import OnnxQdqInt4
from targets.onnx.session import keep_every_position, set_accuracy_level
from targets.onnx.target import OnnxFp32, OnnxInt4, OnnxInt8


@pytest.fixture
def artifact(tiny_model, lower):
    return lower(OnnxFp32(), Checkpoint.open(tiny_model("qwen2")))[0]


def test_decode_goes_on_where_prefill_ended(artifact, tokens):
    session = OnnxFp32().open(artifact, threads=1)
    every = np.concatenate([logits for _, logits in session.logits(tokens)])
    assert session.prefill(tokens[None, :-3]) == every[-4].argmax()
    assert [session.decode(int(token)) for token in tokens[-3:]] == every[-3:].argmax(-1).tolist()


def test_prefill_forgets_what_was_before(artifact, tokens):
    session = OnnxFp32().open(artifact, threads=1)
    first = session.prefill(tokens[None, :9])
    session.decode(5)
    session.prefill(np.stack([tokens, tokens[::-1]]))
    session.decode(7)
    assert session.prefill(tokens[None, :9]) == first


def test_rows_of_a_batch_do_not_touch_each_other(artifact, tokens):
    session = OnnxFp32().open(artifact, threads=1)
    alone = [session.prefill(tokens[None]), session.decode(3)]
    together = [session.prefill(np.stack([tokens, tokens[::-1]])), session.decode(3)]
    assert alone == together


def test_one_graph_is_open_at_a_time_and_only_when_used(artifact, tokens):
    session = OnnxFp32().open(artifact, threads=1)
    assert session._opened == {}
    next(iter(session.logits(tokens)))
    assert list(session._opened) == [True]
    session.prefill(tokens[None])
    assert list(session._opened) == [False]
    session.close()
    assert session._opened == {}


def test_measuring_quality_between_two_tokens_changes_nothing(artifact, tokens):
    session = OnnxFp32().open(artifact, threads=1)
    session.prefill(tokens[None])
    alone = session.decode(3)
    session.prefill(tokens[None])
    next(iter(session.logits(tokens)))
    assert session.decode(3) == alone


def test_runtime_is_named(artifact):
    assert OnnxFp32().open(artifact).runtime == f"onnxruntime {onnxruntime.__version__} CPU"


def levels(model: onnx.ModelProto) -> set[tuple[int, int]]:
    """(bits, accuracy level) of the MatMulNBits nodes."""
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    attributes = [{attribute.name: attribute.i for attribute in node.attribute} for node in nodes]
    return {(values["bits"], values["accuracy_level"]) for values in attributes}


@pytest.mark.parametrize(
    ("target", "expected"), [(OnnxInt4(), (4, 4)), (OnnxInt4(accuracy_level=0), (4, 0)), (OnnxInt8(), (8, 4))]
)
def test_shipped_accuracy_level(tiny_model, quantize, lower, target, expected):
    checkpoint = quantize(tiny_model("llama"), Scheme(target.bits, 32))
    model = onnx.load(lower(target, checkpoint)[0].root / "model.onnx", load_external_data=False)
    assert levels(model) == {expected}
    set_accuracy_level(model, 1)
    assert levels(model) == {(target.bits, 1)}


def test_every_position_changes_nothing_else(artifact):
    model = onnx.load(artifact.root / "model.onnx", load_external_data=False)
    before = [node.name for node in model.graph.node]
    keep_every_position(model)
    assert [name for name in before if name not in {node.name for node in model.graph.node}] == ["last_token"]


def of_texts(tokens):
    """Texts and prompts of lengths that differ, with what is judged of each."""
    return [Continuation(tokens[:length].tolist(), first) for length, first in ((24, 20), (5, 1), (17, 9), (11, 10))]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("chunk", [1 << 27, 4 * 288 * 4 * 6])
def test_texts_are_answered_in_batches_as_alone(tiny_model, lower, tokens, monkeypatch, family, chunk):
    """Float32: the same but for the last bits of sums; where logits of a few positions fit into memory, too."""
    monkeypatch.setattr(onnx_session, "LOGITS_BYTES", chunk)
    artifact = lower(OnnxFp32(), Checkpoint.open(tiny_model(family)))[0]
    check_batches(OnnxFp32(), artifact, tokens, 1e-4)


@pytest.mark.parametrize(
    ("target", "bits"),
    [(OnnxInt4(accuracy_level=0), 4), (OnnxInt4(), 4), (OnnxInt8(), 8), (OnnxQdqInt4(), 4)],
    ids=["int4-exact", "int4", "int8", "qdq-int4"],
)
def test_rounded_texts_are_answered_in_batches_as_alone(tiny_model, quantize, lower, tokens, target, bits):
    """Within what the runtime may differ by from one machine to another."""
    checkpoint = quantize(tiny_model("llama"), Scheme(bits, 32))
    artifact = lower(target, checkpoint)[0]
    check_batches(target, artifact, tokens, target.tolerance(artifact).logits)


def check_batches(target, artifact, tokens, tolerance):
    texts = of_texts(tokens)
    prompts = [text.tokens for text in texts]
    one, three = (SessionAnswerer(target.open(artifact, threads=1), batch_size) for batch_size in (1, 3))
    alone, together = ([found.total for found in answerer.likelihoods(texts, silent)] for answerer in (one, three))
    assert together == pytest.approx(alone, abs=tolerance)
    written = [answerer.generate(prompts, 9, lambda found: found[-1] % 5 == 0, silent) for answerer in (one, three)]
    assert written[0] == written[1]


def silent(done, total):
    assert done <= total
