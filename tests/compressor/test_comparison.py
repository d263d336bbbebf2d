"""The weights' part and the runtime's part of what an artifact loses, each made wrong in turn."""

import json

import numpy as np
import pytest
import torch

from compressor.comparison import Comparer, fault, judged, limits
from compressor.errors import RunError
from compressor.measure.difference import Difference
from compressor.measure.statistics import Estimate
from compressor.source import open_model
from compressor.target import Rounding, Runtime, Tolerance
from targets.onnx.session import OnnxSession

TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def silent(*_):
    pass


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def run(tiny_model, tmp_path_factory, made):
    """`run(target, spec)`: the original's folder and that of a finished run."""
    from compressor.cli import main

    def make(target, spec):
        if (target, spec) not in made:
            model, out = tiny_model("llama"), tmp_path_factory.mktemp("run") / "out"
            words = ["compress", model, "-t", target, "--pass", spec, "--measure", "none", "-o", out]
            with pytest.raises(SystemExit) as stop:
                main([str(word) for word in words])
            assert stop.value.code == 0
            made[target, spec] = model, out
        return made[target, spec]

    return make


@pytest.fixture
def compare(tmp_path):
    def act(model, out):
        original = open_model(str(model), tmp_path / "import", progress=silent).checkpoint
        return Comparer(TOKENS, original, tmp_path / "states", silent).compare(out / "artifact")

    return act


def test_a_right_runtime_agrees_whatever_quantizing_costs(run, compare):
    found = compare(*run("onnx-int4", "rtn:group_size=32"))
    assert found.loss.kl.value > 1e-3
    assert [row.verdict for row in found.runtimes] == ["agrees", "agrees"]
    exact, shipped = found.runtimes
    assert exact.runtime.endswith(", level 0")
    assert exact.tolerance.logits < shipped.tolerance.logits
    assert exact.difference.largest < 1e-3
    assert exact.control is None
    # Activations in blocks of int8 do to llmc's decoder what they do in the kernel.
    assert shipped.difference.mean == pytest.approx(shipped.control.mean, rel=0.4)
    assert not found.at_fault
    json.dumps(found.plain())


def test_a_wrong_runtime_is_at_fault_and_quantizing_is_not(run, compare, monkeypatch):
    right = OnnxSession.logits

    def scaled(self, tokens):
        for start, rows in right(self, tokens):
            yield start, np.asarray(rows * 1.5, np.float32)

    monkeypatch.setattr(OnnxSession, "logits", scaled)
    found = compare(*run("onnx-int4", "rtn:group_size=32"))
    assert found.at_fault
    assert {row.verdict for row in found.runtimes} == {"differs"}
    assert "difference is" in found.runtimes[0].reason
    assert found.loss.kl.value < 0.5  # as before


def test_a_runtime_that_does_not_open_is_at_fault(run, compare, monkeypatch):
    def broken(self, *_, **__):
        raise RunError("It has no kernel for this")

    monkeypatch.setattr(OnnxSession, "__init__", broken)
    found = compare(*run("onnx-int4", "rtn:group_size=32"))
    assert {row.verdict for row in found.runtimes} == {"broke"}
    assert found.runtimes[0].reason == "It has no kernel for this"
    assert found.at_fault


def test_a_runtime_that_is_not_here_is_no_fault(run, compare):
    found = compare(*run("gguf-q8_0", "rtn:bits=8,group_size=32"))
    (row,) = found.runtimes
    assert row.verdict == "not run"
    assert row.reason == "llama-cpp is switched off"
    assert not found.at_fault
    assert 0 <= found.loss.kl.value < 1e-2


@pytest.mark.parametrize(
    ("target", "spec"),
    [
        ("hf", "rtn:group_size=32,symmetric=false"),
        ("trt-int4", "rtn:group_size=64"),
        ("vllm-int8", "rtn:bits=8,group_size=channel,activations=dynamic"),
        ("awq", "rtn:group_size=32,symmetric=false"),
    ],
)
def test_weights_read_back_mean_what_the_step_means(run, tmp_path, target, spec):
    from compressor.checkpoint import Checkpoint
    from compressor.measure.accuracy import Reference, checkpoint_scores
    from compressor.readback import ReadBack
    from compressor.registry import make_target
    from compressor.target import Artifact

    _, out = run(target, spec)
    step = Checkpoint.open(next((out / "steps").iterdir()))
    stored = ReadBack.of(make_target(target, {}), Artifact(out / "artifact", target), silent)
    assert stored.schemes.keys() == step.schemes.keys()
    reference = Reference.make(step, TOKENS, tmp_path / "states.npy", silent)
    quality = checkpoint_scores(stored, reference, silent).quality
    # The floats of folders for 16-bit runtimes are cast to bfloat16.
    assert quality.kl.value < (1e-8 if target == "hf" else 2e-3)
    assert quality.top1.value > 0.85


def difference(mean=0.0, largest=0.0):
    nothing = Estimate(0.0, None)
    return Difference(largest, (0, 0), mean, nothing, nothing, 1)


def test_limits_are_those_of_the_way_of_computing():
    tolerance = Tolerance(0.1, "a reason")
    assert fault(difference(mean=0.049, largest=0.79), tolerance) is None
    assert "the mean difference is 0.06, and 0.05 is explained (a reason)" in fault(difference(mean=0.06), tolerance)
    assert "the largest" in fault(difference(largest=0.9), tolerance)
    assert fault(difference(largest=float("nan")), tolerance) is not None


def test_what_rounding_alone_does_is_the_measure_where_it_is_known():
    tolerance, control = Tolerance(0.1, "a reason"), difference(mean=0.3, largest=2.0)
    assert fault(difference(mean=0.8, largest=15.0), tolerance) is not None
    assert fault(difference(mean=0.8, largest=15.0), tolerance, control) is None
    assert "0.9 is explained" in fault(difference(mean=1.0), tolerance, control)
    assert "16 is explained" in fault(difference(largest=17.0), tolerance, control)
    assert limits(tolerance, difference()) == {"mean": 5e-4, "largest": 8e-3}, "what float32 sums alone do"
    assert fault(difference(mean=0.04), tolerance, difference()) is not None


def test_rounding_is_that_of_the_dtype(tiny_model, tmp_path):
    from compressor.checkpoint import Checkpoint
    from compressor.decoder import full_model
    from compressor.measure.accuracy import Reference
    from compressor.measure.control import rounding_difference

    checkpoint = Checkpoint.open(tiny_model("llama"))
    reference = Reference.make(checkpoint, TOKENS, tmp_path / "states.npy", silent)
    found = {dtype: rounding_difference(reference, Rounding(dtype), silent) for dtype in ("bfloat16", "float16")}
    with torch.no_grad():
        whole = full_model(checkpoint).bfloat16()(TOKENS).logits.float().log_softmax(-1)[:, :-1]
        exact = full_model(checkpoint)(TOKENS).logits.log_softmax(-1)[:, :-1]
    likely = exact.topk(8).indices
    apart = (exact - whole).gather(2, likely).abs().mean().item()
    assert apart / 2.5 < found["bfloat16"].mean < apart * 2.5
    assert 4 < found["bfloat16"].mean / found["float16"].mean < 16  # three bits


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "agrees"), (1.5, "differs")])
def test_a_runtime_is_held_against_its_rounding(tiny_model, tmp_path, factor, verdict):
    """The model in bfloat16, as it is or scaled, under a tolerance that neither counts for."""
    from compressor.checkpoint import Checkpoint
    from compressor.decoder import full_model
    from compressor.measure.accuracy import Reference
    from compressor.measure.difference import difference as apart
    from compressor.measure.torch_session import TorchSession

    checkpoint = Checkpoint.open(tiny_model("llama"))
    reference = Reference.make(checkpoint, TOKENS, tmp_path / "states.npy", silent)
    session = TorchSession(full_model(checkpoint).bfloat16())
    right = session.logits
    session.logits = lambda tokens: ((start, rows * factor) for start, rows in right(tokens))
    found = apart(session, reference, silent)
    tolerance = Tolerance(1e-6, "a reason")
    runtime = Runtime("it", None, lambda: session, tolerance, rounding=Rounding("bfloat16"))
    assert judged("it", runtime, found, reference, silent).verdict == verdict
    blamed = judged("it", Runtime("it", None, lambda: session, tolerance), found, reference, silent)
    assert (blamed.verdict, blamed.control) == ("differs", None)
