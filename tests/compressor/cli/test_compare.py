"""`llmc compare --runtimes`: what it says, and its exit code."""

import json
import shutil

import pytest

TEXT = "The fox sees the hen near the old mill, and the hen sees the fox. " * 40


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run(llmc, tiny_model, tmp_path):
    def make(target, spec="rtn:group_size=32"):
        out = tmp_path / target
        words = ("-t", target, "--pass", spec, "--measure", "none", "-o", out)
        assert llmc("compress", tiny_model("llama"), *words)[0] == 0
        return out

    return make


def test_several_runs_each_against_its_original_and_its_runtimes(llmc, run, text):
    words = ("--text", text, "--length", 32, "--samples", 2)
    code, shown, _ = llmc("compare", "--runtimes", run("hf"), run("vllm-int4"), *words)
    assert code == 0
    assert shown.count("= quantizing: perplexity ") == 2
    assert "✓ transformers" in shown
    assert shown.count("· vLLM >= 0.10: not run: vllm is switched off") == 2


def test_json_and_a_runtime_at_fault(llmc, run, text, monkeypatch):
    from compressor.measure.torch_session import TorchSession

    right = TorchSession.logits
    monkeypatch.setattr(TorchSession, "logits", lambda self, tokens: ((n, -x) for n, x in right(self, tokens)))
    code, shown, _ = llmc("compare", "--runtimes", run("hf"), "--text", text, "--length", 32, "--json")
    assert code == 1
    (found,) = json.loads(shown)
    assert found["at_fault"]
    assert [row["verdict"] for row in found["runtimes"]] == ["differs", "not run"]
    assert found["loss"]["kl"]["value"] < 1


def test_an_artifact_alone_says_that_its_original_is_not_known(llmc, run, text, tmp_path):
    alone = shutil.copytree(run("hf") / "artifact", tmp_path / "alone")
    code, shown, _ = llmc("compare", "--runtimes", alone, "--text", text, "--length", 32)
    assert code == 0
    assert "· quantizing: not compared: the original is not known" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "There is no text to ask with"),
        (("--text", "TEXT", "--original", "nowhere/at-all"), "the original, nowhere/at-all, is not here"),
        (("--text", "TEXT", "--engine", "vlm=x"), "did you mean 'vllm'"),
        (("--text", "TEXT", "--engine", "vllm=nowhere"), "no Python environment"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(llmc, run, text, monkeypatch, words, sentence):
    monkeypatch.setenv("LLMC_ENGINE_VLLM", "none")
    code, _, said = llmc("compare", "--runtimes", run("hf"), *(text if word == "TEXT" else word for word in words))
    assert code == 2
    assert sentence in said


def test_doctor_tells_of_engines(llmc):
    code, shown, _ = llmc("doctor", "--json")
    assert code == 0
    found = json.loads(shown)["engines"]
    assert found["vllm"]["missing"] == "vllm is switched off"
    assert "vllm-int4" in found["vllm"]["purpose"]
    assert "gguf-q4_0" in found["llama-cpp"]["purpose"]
