"""`llmc compress` as a user meets it: what a run leaves, and what was measured of it."""

import json
import math

import numpy as np
import pytest
import yaml


def test_the_whole_way_leaves_what_scripts_rely_on(compress, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    code, shown, _ = compress(tiny_model("llama"), out, *workload)
    assert code == 0
    assert "bit-identical" in shown
    names = {path.name for path in out.iterdir()}
    assert names == {"artifact", "steps", "samples", "ledger.json", "report.md", "report.html", "recipe.yaml", "run.sh"}
    assert [path.name for path in (out / "steps").iterdir()] == ["01-gptq"]
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["schema"] == 3
    assert [row["name"] for row in ledger["steps"]] == ["original", "gptq:group_size=32", "hf"]
    step = ledger["steps"][1]
    assert step["seconds"] > 0
    assert step["peak_rss_bytes"] > 0
    assert set(step["quality"]["kl"]) == {"value", "stderr"}
    assert set(ledger["steps"][2]["latency"][0]["ttft_ms"]) == {"p50", "p95", "p99"}
    assert step["latency"] == [], "as fast as the original, by construction"
    assert ledger["warnings"][-1].startswith("Not timed: gptq:group_size=32. ")
    assert ledger["artifact"]["verified"] == {"reader": "compressed-tensors", "weights": 20, "mismatches": []}


def test_json_is_the_ledger(compress, tiny_model, tmp_path, workload):
    code, shown, _ = compress(tiny_model("llama"), tmp_path / "out", *workload, "--json")
    assert code == 0
    assert json.loads(shown)["artifact"]["target"] == "hf"


def test_the_recipe_that_was_run_runs_again_with_equal_bytes(llmc, compress, tiny_model, tmp_path, workload):
    first, second = tmp_path / "first", tmp_path / "second"
    compress(tiny_model("llama"), first, *workload)
    code, _, _ = llmc("compress", "--recipe", first / "recipe.yaml", "-o", second)
    assert code == 0
    digests = [json.loads((out / "ledger.json").read_text())["artifact"]["digest"] for out in (first, second)]
    assert digests[0] == digests[1]


def test_without_texts_rounding_to_nearest_works_and_says_what_was_not_measured(compress, tiny_model, tmp_path):
    code, shown, _ = compress(
        tiny_model("llama"), tmp_path / "out", "--prompt", 8, "--output-tokens", 4, spec="rtn:group_size=32"
    )
    assert code == 0
    assert "no evaluation text" in shown


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


def test_overlapping_texts_are_reported(compress, tiny_model, tmp_path, workload):
    _, shown, _ = compress(tiny_model("llama"), tmp_path / "out", *workload)
    assert "calibration text too" in " ".join(shown.split())


def test_every_row_keeps_what_was_measured_of_every_token(compress, tiny_model, tmp_path, workload):
    from compressor.ledger import load_ledger
    from compressor.measure import samples

    out = tmp_path / "out"
    compress(tiny_model("llama"), out, *workload)
    ledger = load_ledger(out)
    original, *others = [samples.read(out, row.samples) for row in ledger.steps]
    assert len(others) == 2
    for row, found in zip(ledger.steps[1:], others, strict=True):
        assert found["loss"].mean() == pytest.approx(math.log(row.quality.perplexity.value), rel=1e-5)
        assert np.array_equal(found["original_loss"], original["loss"])
        assert np.array_equal(found["token"], original["token"])
    assert 3 <= len(ledger.steps[-1].latency[0].repeats["ttft_ms"]) <= 5


def test_the_documents_of_records_are_known(compress, tiny_model, tmp_path, text, workload):
    from compressor.ledger import load_ledger
    from compressor.measure import samples

    texts, out = tmp_path / "text.jsonl", tmp_path / "out"
    texts.write_text("\n".join(json.dumps({"text": line}) for line in text.read_text().splitlines()[:12]) + "\n\n")
    workload[workload.index("--eval") + 1] = texts
    compress(tiny_model("llama"), out, *workload)
    ledger = load_ledger(out)
    found = samples.read(out, ledger.steps[1].samples)
    assert ledger.texts["evaluation"].documents == len(set(found["document"])) > 8
    assert ledger.texts["calibration"].documents is None


def test_a_short_context_is_no_obstacle_where_nothing_is_judged(compress, tiny_model, tmp_path):
    root = tiny_model("llama", max_position_embeddings=64)
    code, _, err = compress(root, tmp_path / "out", "--prompt", 8, "--output-tokens", 4, spec="rtn:group_size=32")
    assert code == 0, err


def test_recipe_yaml_has_every_default_written_out(compress, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    compress(tiny_model("llama"), out, *workload)
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["passes"][0]["gptq"]["damping"] == 0.01
    assert recipe["calibration"]["seed"] == 0


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


@pytest.mark.parametrize(("engine", "opened"), [(None, 2), ("an engine", 1)])
def test_an_engine_is_started_once(compress, tiny_model, tmp_path, workload, monkeypatch, engine, opened):
    """One that reads all files when it starts answers for the manifest, and is measured then."""
    from targets.huggingface import HuggingFace

    sessions, closed = [], []
    honest = HuggingFace.open

    def counting(self, artifact, **options):
        session = honest(self, artifact, **options)
        monkeypatch.setattr(session, "close", lambda: closed.append(session))
        sessions.append(session)
        return session

    monkeypatch.setattr(HuggingFace, "open", counting)
    monkeypatch.setattr(HuggingFace, "engine", engine)
    code, _, _ = compress(tiny_model("llama"), tmp_path / "out", *workload, spec="rtn:group_size=32")
    assert code == 0
    assert len(sessions) == opened
    assert closed == sessions
    row = json.loads((tmp_path / "out" / "ledger.json").read_text())["steps"][-1]
    assert row["not_run"] is None and row["latency"]


def test_settings_that_transformers_refuses_to_save_are_left_out_and_named(compress, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    root, out = tiny_model("llama"), tmp_path / "out"
    (root / "generation_config.json").write_text('{"eos_token_id": 257, "do_sample": false, "temperature": 0.6}')
    assert compress(root, out, "--measure", "none", spec="rtn:group_size=32")[0] == 0
    for folder in (out / "artifact", out / "steps" / "01-rtn"):
        assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": 257, "do_sample": False}
    notes = json.loads((out / "ledger.json").read_text())["steps"][0]["notes"]
    assert any(note.startswith("generation_config.json is copied without temperature") for note in notes)
    AutoModelForCausalLM.from_pretrained(out / "artifact").save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="temperature"):
        AutoModelForCausalLM.from_pretrained(root).save_pretrained(tmp_path / "never")
