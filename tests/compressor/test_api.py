"""The verbs as functions: one import gives them, and they do what the command line does."""

import subprocess
import sys
from pathlib import Path

import pytest

import compressor as llmc
from compressor.errors import InputError
from compressor.gate.decide import Verdict

TEXT = "Once upon a time there was a fox. " * 400


@pytest.fixture(scope="module")
def run(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    (folder / "evaluation.txt").write_text(TEXT)
    measure = {"length": 64, "latency": {"prompt": 16, "output": 4, "repeats": 2}}
    return llmc.compress(
        tiny_models("llama"),
        target="onnx-int4",
        passes=["rtn:group_size=32"],
        output=folder / "out",
        measure={**measure, "texts": str(folder / "evaluation.txt")},
        gate={"max_perplexity_increase": "90%"},
    )


def test_a_run_has_what_the_command_line_leaves(run):
    assert {"artifact", "ledger.json", "report.html", "report.md", "recipe.yaml"} <= {
        one.name for one in run.folder.iterdir()
    }
    assert run.ledger["onnx-int4"].perplexity.value > 1
    assert run.ledger["original"].kl.value == 0
    assert run.decision.verdict in Verdict
    assert "smaller" in run.report()
    assert run.report(html=True).startswith("<!doctype html>")
    with pytest.raises(KeyError, match="there are original"):
        run.ledger["no such row"]


def test_a_run_is_judged_and_opened_again(run):
    again = llmc.open_run(run.folder)
    assert again.ledger.steps == run.ledger.steps
    assert again.gate(max_perplexity_increase="90%").findings[0].metric == "perplexity"
    with pytest.raises(InputError, match="more than all"):
        again.gate(max_perplexity_increase=3)


def test_an_artifact_is_verified_and_answers(run):
    verdict = run.artifact.verify()
    assert verdict.findings == []
    with run.artifact.open() as model:
        assert "onnxruntime" in model.runtime
        text = model.generate("Once upon", max_new_tokens=5)
        assert text == model.generate("Once upon", max_new_tokens=5)
        assert model.generate("Once upon", max_new_tokens=5, chat=True) != text
        with pytest.raises(InputError, match="context"):
            model.generate(TEXT)


def test_a_step_answers_as_its_own_weights_do(run):
    with llmc.open_model(run.folder / "steps" / "01-rtn") as step:
        assert step.runtime == "llmc, float32"
        assert isinstance(step.generate("Once upon", max_new_tokens=3), str)


def test_what_is_wrong_is_said_before_work(tmp_path):
    with pytest.raises(InputError, match="neither a folder"):
        llmc.compress(tmp_path / "nothing", target="hf", output=tmp_path / "out")
    with pytest.raises(InputError, match="unknown key 'mesure'"):
        llmc.compress("m", target="hf", mesure={})
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError):
        llmc.open_artifact(tmp_path)


def test_lists_and_inspection(run):
    assert "gptq" in llmc.list_passes()
    assert "onnx-int4" in llmc.list_targets()
    assert llmc.inspect_path(run.folder)["artifact"] == "onnx-int4"


def test_the_import_is_light():
    code = (
        "import sys, compressor; compressor.compress; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-P", "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
    )
