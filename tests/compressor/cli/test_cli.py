"""The command line as a user meets it: results on stdout, one sentence on stderr, the right exit code."""

import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import yaml

from compressor.cli import VERBS

TEXT = "\n".join(f"The {a} sees the {b} near the old mill, and number {n} is called." for n in range(40)
                 for a, b in (("fox", "hen"), ("boy", "sea"), ("sun", "moon")))  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def workload(text):
    """Options that keep a run short."""
    return ["--calibration", text, "--samples", 8, "--length", 64, "--eval", text, "--eval-length", 64,
            "--prompt", 8, "--output-tokens", 4]  # fmt: skip


def compress(llmc, model, out, *words, target="hf", spec="gptq:group_size=32"):
    return llmc("compress", model, "-t", target, "--pass", spec, "-o", out, *words)


def test_the_whole_way_leaves_what_scripts_rely_on(llmc, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    code, shown, _ = compress(llmc, tiny_model("llama"), out, *workload)
    assert code == 0
    assert "bit-identical" in shown
    names = {path.name for path in out.iterdir()}
    assert names == {"artifact", "steps", "samples", "ledger.json", "report.md", "recipe.yaml", "run.sh"}
    assert [path.name for path in (out / "steps").iterdir()] == ["01-gptq"]
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["schema"] == 2
    assert [row["name"] for row in ledger["steps"]] == ["original", "gptq:group_size=32", "hf"]
    step = ledger["steps"][1]
    assert step["seconds"] > 0
    assert step["peak_rss_bytes"] > 0
    assert set(step["quality"]["kl"]) == {"value", "stderr"}
    assert set(step["latency"][0]["ttft_ms"]) == {"p50", "p95"}
    assert ledger["artifact"]["verified"] == {"reader": "compressed-tensors", "weights": 20, "mismatches": []}


def test_json_is_the_ledger(llmc, tiny_model, tmp_path, workload):
    code, shown, _ = compress(llmc, tiny_model("llama"), tmp_path / "out", *workload, "--json")
    assert code == 0
    assert json.loads(shown)["artifact"]["target"] == "hf"


def test_the_recipe_that_was_run_runs_again_with_equal_bytes(llmc, tiny_model, tmp_path, workload):
    first, second = tmp_path / "first", tmp_path / "second"
    compress(llmc, tiny_model("llama"), first, *workload)
    code, _, _ = llmc("compress", "--recipe", first / "recipe.yaml", "-o", second)
    assert code == 0
    digests = [json.loads((out / "ledger.json").read_text())["artifact"]["digest"] for out in (first, second)]
    assert digests[0] == digests[1]


def test_without_texts_rounding_to_nearest_works_and_says_what_was_not_measured(llmc, tiny_model, tmp_path):
    code, shown, _ = compress(
        llmc, tiny_model("llama"), tmp_path / "out", "--prompt", 8, "--output-tokens", 4, spec="rtn:group_size=32"
    )
    assert code == 0
    assert "no held-out text" in shown


def test_dry_run_does_nothing(llmc, tiny_model, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = compress(llmc, tiny_model("llama"), out, "--dry-run")
    assert code == 0
    assert "int4 g32 symmetric" in shown
    assert not out.exists()


def test_accuracy_level_is_an_option_of_the_target(llmc, tiny_model):
    words = ("compress", tiny_model("llama"), "-t", "onnx-int4", "--pass", "rtn:group_size=32", "--dry-run", "--json")
    for given, level in ((("--accuracy-level", "0"), 0), ((), 4)):
        code, shown, _ = llmc(*words, *given)
        assert (code, json.loads(shown)["recipe"]["target"]) == (0, {"onnx-int4": {"accuracy_level": level}})


def test_bits_in_between_are_shared_out_and_the_recipe_says_how(llmc, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    code, shown, _ = llmc("compress", tiny_model("llama"), "-t", "hf", "--bits", "4.75", "-o", out, *workload)
    assert code == 0
    assert "bit-identical" in shown
    assert [path.name for path in (out / "steps").iterdir()] == ["01-mixed"]
    ledger = json.loads((out / "ledger.json").read_text())
    assert [row["name"] for row in ledger["steps"]] == ["original", "mixed:bits=4.75", "hf"]
    assert "the budget was 4.75" in ledger["steps"][1]["notes"][0]
    assert yaml.safe_load((out / "recipe.yaml").read_text())["passes"][0]["mixed"]["bits"] == 4.75


def test_a_dry_run_says_what_is_not_known_yet(llmc, tiny_model):
    words = ("compress", tiny_model("llama"), "-t", "hf", "--bits", "4.75", "--dry-run")
    _, shown, _ = llmc(*words)
    assert "  int8 channel symmetric\n" in shown
    assert "is what mixed finds out" in shown
    _, shown, _ = llmc(*words, "--json")
    assert json.loads(shown)["chosen_by"] == ["mixed"]


def test_what_a_pass_chose_is_asked_of_the_target_again(llmc, tiny_model, tmp_path, workload, monkeypatch):
    from compressor.quantized import Scheme
    from passes.mixed import Mixed

    monkeypatch.setattr(Mixed, "plan_layers", lambda self, shapes: dict.fromkeys(shapes, Scheme(4, 64)))
    out = tmp_path / "out"
    words = ("compress", tiny_model("llama"), "-t", "vllm-int4", "--bits", "6", "-o", out, *workload)
    code, _, err = llmc(*words)
    assert code == 4
    assert "vllm-int4 cannot take this" in err
    assert "int8" in err
    assert [path.name for path in (out / "steps").iterdir()] == ["01-mixed"]
    assert not (out / "artifact").exists()


# ---- bad input: exit code 2, one sentence, nothing left behind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compress", "MODEL"], "Which target?"),
        (["compress"], "Which model?"),
        (["compress", "MODEL", "-t", "onxx-int4"], "did you mean 'onnx-int4'?"),
        (["compress", "MODEL", "-t", "hf", "--pass", "gqtp"], "did you mean 'gptq'?"),
        (["compress", "MODEL", "-t", "hf", "--pass", "gptq:group_size=32"], "needs calibration text"),
        (["compress", "MODEL", "-t", "hf", "--pass", "gptq"], "does not divide the input width 64"),
        (["compress", "no-such-thing", "-t", "hf"], "neither a folder"),
        (["compress", "MODEL", "-t", "hf", "--samples", "4"], "--calibration"),
        (["compress", "MODEL", "-t", "hf", "--bits", "4.5", "--pass", "rtn"], "--bits and --pass both say"),
        (["compress", "--recipe", "r.yaml", "--bits", "4"], "--bits and --recipe both say"),
        (["compress", "MODEL", "-t", "hf", "--bits", "3"], "smallest candidates take"),
        (["compress", "MODEL", "-t", "trt-int4", "--bits", "4.5"], "trt-int4 cannot take this"),
        (["compress", "MODEL", "-t", "onnx-fp32", "--bits", "8"], "no pass with bits"),
        (["compress", "MODEL", "-t", "trt-int4", "--accuracy-level", "0"], "has no option 'accuracy_level'"),
        (["compress", "MODEL", "-t", "onnx-int4", "--sm", "86,89"], "has no option 'sm'"),
        (["compress", "MODEL", "-t", "trtrtx-int4", "--sm", "ampere"], "='ampere' is not allowed"),
        (["comprss"], "did you mean 'compress'?"),
        (["inspect", "no-such-thing"], "does not exist"),
        (["report", "no-such-thing"], "There is no ledger"),
        (["passes", "gqtp"], "did you mean 'gptq'?"),
    ],
)
def test_bad_requests(llmc, tiny_model, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    root = tiny_model("llama") if "MODEL" in words else None
    code, _, err = llmc(*[root if word == "MODEL" else word for word in words])
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_exists_is_refused_and_untouched(llmc, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("keep me")
    code, _, err = compress(llmc, tiny_model("llama"), out, *workload)
    assert code == 2
    assert "already exists" in err
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_too_little_calibration_text_says_how_much_there_is(llmc, tiny_model, tmp_path, text):
    code, _, err = compress(llmc, tiny_model("llama"), tmp_path / "out", "--calibration", text, "--length", 512)
    assert code == 2
    assert "windows of 512 tokens" in err
    assert not (tmp_path / "out").exists()


def test_windows_longer_than_the_context_are_refused(llmc, tiny_model, tmp_path, text):
    code, _, err = compress(llmc, tiny_model("llama"), tmp_path / "out", "--calibration", text, "--length", 1024)
    assert code == 2
    assert "longer than the model's context of 512" in err


def test_overlapping_texts_are_reported(llmc, tiny_model, tmp_path, workload):
    _, shown, _ = compress(llmc, tiny_model("llama"), tmp_path / "out", *workload)
    assert "calibration text too" in " ".join(shown.split())


def test_a_recipe_with_an_unknown_key_names_the_line(llmc, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: here\ntarget: hf\ncalibration:\n  texts: a.txt\n  sampels: 3\n")
    code, _, err = llmc("compress", "--recipe", recipe)
    assert code == 2
    assert "line 5" in err
    assert "did you mean 'samples'?" in err


# ---- runs that break: exit code 4, nothing half-written, inputs untouched


def test_a_full_disk_leaves_nothing_half_written(llmc, tiny_model, tmp_path, workload, monkeypatch):
    import errno

    from compressor import writer

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    root = tiny_model("llama")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    code, _, err = compress(llmc, root, tmp_path / "out", *workload)
    assert code == 4
    assert "full" in err
    assert list((tmp_path / "out" / "steps").iterdir()) == []
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


def test_an_artifact_that_reads_back_differently_never_appears(llmc, tiny_model, tmp_path, workload, monkeypatch):
    from targets import huggingface

    honest = huggingface.HuggingFace.lower

    def damaging(self, checkpoint, out, progress):
        notes = honest(self, checkpoint, out, progress)
        shard = out / "model.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        return notes

    monkeypatch.setattr(huggingface.HuggingFace, "lower", damaging)
    code, _, err = compress(llmc, tiny_model("llama"), tmp_path / "out", *workload)
    assert code == 4
    assert "1 of 20 weights changed" in err
    assert not (tmp_path / "out" / "artifact").exists()


def test_an_interrupted_run_says_how_to_go_on(llmc, tiny_model, tmp_path, workload, monkeypatch):
    from passes.rtn import RTN

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(RTN, "edit", interrupt)
    out = tmp_path / "out"
    code, _, err = compress(llmc, tiny_model("llama"), out, *workload, spec="rtn:group_size=32")
    assert code == 4
    assert "--resume" in err
    assert list((out / "steps").iterdir()) == []
    monkeypatch.undo()
    code, _, _ = compress(llmc, tiny_model("llama"), out, *workload, "--resume", spec="rtn:group_size=32")
    assert code == 0


def test_an_extension_that_mistakes_an_interrupt_for_an_error_is_still_an_interrupt(
    llmc, tiny_model, tmp_path, workload, monkeypatch
):
    import signal

    from passes.rtn import RTN

    def extension(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(RTN, "edit", extension)
    code, _, err = compress(llmc, tiny_model("llama"), tmp_path / "out", *workload, spec="rtn:group_size=32")
    assert code == 4
    assert "--resume" in err


# ---- resume


def test_resume_computes_nothing_twice(llmc, tiny_model, tmp_path, workload, monkeypatch):
    from passes.gptq import GPTQ

    root, out = tiny_model("llama"), tmp_path / "out"
    compress(llmc, root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())

    def forbidden(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(GPTQ, "apply", forbidden)
    monkeypatch.setattr("compressor.evaluator.checkpoint_scores", forbidden)
    code, _, err = compress(llmc, root, out, *workload, "--resume")
    assert code == 0, err
    after = json.loads((out / "ledger.json").read_text())
    assert after["steps"] == before["steps"]
    assert after["artifact"] == before["artifact"]


def test_resume_measures_again_when_the_held_out_text_is_another(llmc, tiny_model, tmp_path, workload):
    root, out, other = tiny_model("llama"), tmp_path / "out", tmp_path / "other.txt"
    other.write_text(TEXT[::-1])
    compress(llmc, root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())["steps"][1]
    workload[workload.index("--eval") + 1] = other
    compress(llmc, root, out, *workload, "--resume")
    after = json.loads((out / "ledger.json").read_text())["steps"][1]
    assert after["seconds"] == before["seconds"]
    assert after["quality"] != before["quality"]


def test_every_row_keeps_what_was_measured_of_every_token(llmc, tiny_model, tmp_path, workload):
    from compressor.ledger import load_ledger
    from compressor.measure import samples

    out = tmp_path / "out"
    compress(llmc, tiny_model("llama"), out, *workload)
    ledger = load_ledger(out)
    original, *others = [samples.read(out, row.samples) for row in ledger.steps]
    assert len(others) == 2
    for row, found in zip(ledger.steps[1:], others, strict=True):
        assert found["loss"].mean() == pytest.approx(math.log(row.quality.perplexity.value), rel=1e-5)
        assert np.array_equal(found["original_loss"], original["loss"])
        assert np.array_equal(found["token"], original["token"])
        assert len(row.latency[0].repeats["ttft_ms"]) == 5


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_resume_measures_again_what_lost_its_samples(llmc, tiny_model, tmp_path, workload, damage):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(llmc, root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())["steps"][1]["samples"]
    damage(out / before["path"])
    assert compress(llmc, root, out, *workload, "--resume")[0] == 0
    assert json.loads((out / "ledger.json").read_text())["steps"][1]["samples"] == before
    assert hashlib.sha256((out / before["path"]).read_bytes()).hexdigest() == before["sha256"]


def test_the_documents_of_records_are_known(llmc, tiny_model, tmp_path, workload):
    from compressor.ledger import load_ledger
    from compressor.measure import samples

    texts, out = tmp_path / "text.jsonl", tmp_path / "out"
    texts.write_text("\n".join(json.dumps({"text": line}) for line in TEXT.splitlines()[:12]) + "\n\n")
    workload[workload.index("--eval") + 1] = texts
    compress(llmc, tiny_model("llama"), out, *workload)
    ledger = load_ledger(out)
    found = samples.read(out, ledger.steps[1].samples)
    assert ledger.texts["evaluation"].documents == len(set(found["document"])) > 8
    assert ledger.texts["calibration"].documents is None


def test_held_out_text_that_is_not_utf8_is_refused(llmc, tiny_model, tmp_path, workload):
    text = tmp_path / "latin.txt"
    text.write_bytes(TEXT.encode() + b"\xe9\n\n" + TEXT.encode())
    workload[workload.index("--eval") + 1] = text
    code, _, err = compress(llmc, tiny_model("llama"), tmp_path / "out", *workload)
    assert code == 2
    assert "is not UTF-8 text" in err
    assert not (tmp_path / "out").exists()


def test_resume_refuses_a_step_of_another_recipe(llmc, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(llmc, root, out, *workload)
    code, _, err = compress(llmc, root, out, *workload, "--resume", spec="gptq:bits=8,group_size=32")
    assert code == 2
    assert "made from another input, other options" in err
    assert (out / "steps" / "01-gptq").exists()


def test_resume_refuses_a_damaged_artifact(llmc, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(llmc, root, out, *workload)
    with (out / "artifact" / "config.json").open("a") as file:
        file.write(" ")
    code, _, err = compress(llmc, root, out, *workload, "--resume")
    assert code == 2
    assert "config.json is damaged" in err


def test_resume_after_the_ledger_was_lost_still_knows_the_size_of_a_step(llmc, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(llmc, root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())["steps"][1]
    (out / "ledger.json").unlink()
    compress(llmc, root, out, *workload, "--resume")
    after = json.loads((out / "ledger.json").read_text())["steps"][1]
    assert after["size_bytes"] == before["size_bytes"]
    assert after["seconds"] is None, "what was not measured is not invented"


def test_a_short_context_is_no_obstacle_where_nothing_is_judged(llmc, tiny_model, tmp_path):
    root = tiny_model("llama", max_position_embeddings=64)
    code, _, err = compress(llmc, root, tmp_path / "out", "--prompt", 8, "--output-tokens", 4, spec="rtn:group_size=32")
    assert code == 0, err


# ---- the other verbs


@pytest.mark.parametrize("words", [["passes"], ["passes", "gptq"], ["targets"], ["targets", "trt-int4"], ["doctor"]])
def test_listings_speak_json(llmc, words):
    code, shown, _ = llmc(*words, "--json")
    assert code == 0
    assert json.loads(shown)
    code, shown, _ = llmc(*words)
    assert code == 0
    assert shown


def test_doctor_tells_what_cannot_be_made(llmc, monkeypatch):
    monkeypatch.setattr("targets.gguf.target.find_spec", lambda name: None)
    code, shown, _ = llmc("doctor", "--json")
    targets = json.loads(shown)["targets"]
    assert code == 0
    assert "pip install 'llmc-compiler[gguf]'" in targets["gguf-q4_0"]["not_made"]
    assert targets["hf"] == {"not_made": None, "not_run": None}
    assert "gguf-q4_0            cannot be made" in llmc("doctor")[1]


def test_inspect_tells_a_model_a_step_an_artifact_and_a_run_apart(llmc, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(llmc, root, out, *workload)
    kinds = [
        json.loads(llmc("inspect", path, "--json")[1])["kind"]
        for path in (root, out / "steps" / "01-gptq", out / "artifact", out)
    ]
    assert kinds == ["model folder", "quantized model folder", "artifact", "run"]
    _, shown, _ = llmc("inspect", out / "artifact")
    assert "14 × int4 g32 symmetric" in shown


def test_report_shows_a_finished_run(llmc, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    compress(llmc, tiny_model("llama"), out, *workload)
    assert "bit-identical" in llmc("report", out)[1]
    assert llmc("report", out, "--markdown")[1] == (out / "report.md").read_text()
    assert json.loads(llmc("report", out, "--json")[1]) == json.loads((out / "ledger.json").read_text())


def test_recipe_yaml_has_every_default_written_out(llmc, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    compress(llmc, tiny_model("llama"), out, *workload)
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["passes"][0]["gptq"]["damping"] == 0.01
    assert recipe["calibration"]["seed"] == 0


def test_help_imports_nothing_heavy():
    script = """
import sys
from compressor.cli import main
try:
    main(["--help"])
except SystemExit:
    print([name for name in ("torch", "transformers", "numpy", "pydantic") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("[]")
    for verb in VERBS:
        assert verb in shown


def test_every_verb_answers_help(llmc):
    for verb in VERBS:
        code, shown, _ = llmc(verb, "--help")
        assert code == 0
        assert "--json" in shown


def test_a_pruned_model_goes_on_to_a_target(llmc, tiny_model, tmp_path, workload):
    out, root = tmp_path / "out", tiny_model("llama", num_hidden_layers=4)
    words = ["compress", root, "-t", "hf", "--pass", "prune-depth:fraction=0.5", "--pass", "gptq:group_size=32"]
    code, shown, _ = llmc(*words, *workload, "--dry-run", "--json")
    assert code == 0 and sum(json.loads(shown)["linears"].values()) == 15, "the plan is for two layers and the head"
    assert llmc(*words, *workload, "-o", out)[0] == 0
    ledger = json.loads((out / "ledger.json").read_text())
    original, pruned = ledger["steps"][:2]
    assert pruned["size_bytes"] < original["size_bytes"]
    assert pruned["quality"]["kl"]["value"] > 0 and "left out layers" in pruned["notes"][0]
    assert json.loads((out / "artifact" / "config.json").read_text())["num_hidden_layers"] == 2
    assert llmc(*words, *workload, "-o", out, "--resume")[0] == 0
