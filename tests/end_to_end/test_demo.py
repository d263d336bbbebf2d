"""The demo model through every target by the real command line, judged on its held-out text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
LLMC = Path(sys.executable).with_name("llmc")
INT4, INT8 = ("onnx-int4", "trt-int4", "vllm-int4", "gguf-q4_0", "hf"), ("onnx-int8", "gguf-q8_0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that compresses the demo model, for a target and its like at once, and gives its ledger and folder."""
    made = {}

    def run(target):
        group = INT4 if target in INT4 else INT8
        if group not in made:
            made[group] = tmp_path_factory.mktemp("demo") / "out"
            words = [LLMC, "compress", "--recipe", DEMO / "recipe.yaml", "-o", made[group]]
            words += [word for one in group for word in ("-t", one)]
            if group is INT8:
                words += ["--pass", "rtn:bits=8,group_size=64"]
            subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
        out = made[group] / target
        return json.loads((out / "ledger.json").read_text()), out

    return run


@pytest.mark.parametrize("target", [*INT4, *INT8])
def test_every_target_verifies_and_accuracy_holds(runs, target):
    ledger, _ = runs(target)
    assert ledger["artifact"]["verified"]["mismatches"] == []
    assert ledger["artifact"]["verified"]["weights"] == 74
    original, step = ledger["steps"][:2]
    assert original["quality"]["perplexity"]["value"] < 4, "the demo model is trained"
    assert step["quality"]["perplexity_increase"]["value"] < 0.05
    assert step["bits_per_weight"] < original["bits_per_weight"] * 0.6


def test_the_onnx_artifact_measures_like_the_step_it_was_lowered_from(runs):
    ledger, _ = runs("onnx-int4")
    rows = {row["name"]: row["quality"] for row in ledger["steps"]}
    step, exact = rows["gptq:group_size=64"], rows["onnx-int4, level 0"]
    assert exact["kl"]["value"] == pytest.approx(step["kl"]["value"], abs=2e-5)
    assert exact["perplexity"]["value"] == pytest.approx(step["perplexity"]["value"], rel=1e-4)
    assert rows["onnx-fp32, original"]["kl"]["value"] == pytest.approx(0, abs=2e-6)
    assert rows["onnx-int4"]["kl"]["value"] < step["kl"]["value"] + 0.01


def test_every_timed_row_says_what_it_ran_in(runs):
    ledger, _ = runs("onnx-int4")
    timed = [row for row in ledger["steps"] if row["latency"]]
    # A step computes in transformers what the original does, and is not timed again.
    assert [row["name"] for row in ledger["steps"] if row not in timed] == ["gptq:group_size=64"]
    for row in timed:
        (latency,) = row["latency"]
        assert row["runtime"].startswith(("transformers", "onnxruntime"))
        assert latency["itl_ms"]["p50"] <= latency["itl_ms"]["p95"]


def test_what_cannot_run_here_says_so(runs):
    ledger, _ = runs("trt-int4")
    assert ledger["steps"][-1]["not_run"]
    assert ledger["artifact"]["run"].startswith("trtllm-serve ")


def test_a_gguf_artifact_is_one_file(runs):
    ledger, out = runs("gguf-q4_0")
    assert sorted(path.name for path in (out / "artifact").iterdir()) == ["llmc-manifest.json", "model.gguf"]
    assert (out / "run.sh").read_text().endswith("exec llama-server -m artifact/model.gguf --port 8080 -c 1024\n")
    assert ledger["steps"][-1]["bits_per_weight"] < 8


def test_the_step_generates_in_transformers(runs):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = runs("vllm-int4")
    step = out.parent / "steps" / "01-gptq"
    tokenizer = AutoTokenizer.from_pretrained(step)
    model = AutoModelForCausalLM.from_pretrained(step)
    tokens = tokenizer("Question: Which number comes after six?\nAnswer:", return_tensors="pt")
    output = model.generate(**tokens, do_sample=False, max_new_tokens=4)
    assert tokenizer.decode(output[0, tokens["input_ids"].shape[1] :]).strip().lower().startswith("seven")


def test_the_onnx_artifact_talks(runs):
    _, out = runs("onnx-int4")
    words = [sys.executable, DEMO / "talk.py", DEMO / "model", out / "artifact"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert shown.count("original") == shown.count("onnx-int4") == 3
    assert shown.lower().count("seven") >= 2
