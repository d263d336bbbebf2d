"""`llmc compress --resume`: nothing is computed twice, and nothing stale is taken."""

import hashlib
import json

import pytest


def test_resume_computes_nothing_twice(compress, tiny_model, tmp_path, workload, monkeypatch):
    from passes.gptq import GPTQ

    root, out = tiny_model("llama"), tmp_path / "out"
    compress(root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())

    def forbidden(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(GPTQ, "apply", forbidden)
    monkeypatch.setattr("compressor.evaluator.checkpoint_scores", forbidden)
    code, _, err = compress(root, out, *workload, "--resume")
    assert code == 0, err
    after = json.loads((out / "ledger.json").read_text())
    assert after["steps"] == before["steps"]
    assert after["artifact"] == before["artifact"]


def test_resume_measures_again_when_the_held_out_text_is_another(compress, tiny_model, tmp_path, text, workload):
    root, out, other = tiny_model("llama"), tmp_path / "out", tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    compress(root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())["steps"][1]
    workload[workload.index("--eval") + 1] = other
    compress(root, out, *workload, "--resume")
    after = json.loads((out / "ledger.json").read_text())["steps"][1]
    assert after["seconds"] == before["seconds"]
    assert after["quality"] != before["quality"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_resume_measures_again_what_lost_its_samples(compress, tiny_model, tmp_path, workload, damage):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())["steps"][1]["samples"]
    damage(out / before["path"])
    assert compress(root, out, *workload, "--resume")[0] == 0
    assert json.loads((out / "ledger.json").read_text())["steps"][1]["samples"] == before
    assert hashlib.sha256((out / before["path"]).read_bytes()).hexdigest() == before["sha256"]


def test_resume_refuses_a_step_of_another_recipe(compress, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(root, out, *workload)
    code, _, err = compress(root, out, *workload, "--resume", spec="gptq:bits=8,group_size=32")
    assert code == 2
    assert "made from another input, other options" in err
    assert (out / "steps" / "01-gptq").exists()


def test_resume_refuses_a_damaged_artifact(compress, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(root, out, *workload)
    with (out / "artifact" / "config.json").open("a") as file:
        file.write(" ")
    code, _, err = compress(root, out, *workload, "--resume")
    assert code == 2
    assert "config.json is damaged" in err


def test_resume_after_the_ledger_was_lost_still_knows_the_size_of_a_step(compress, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(root, out, *workload)
    before = json.loads((out / "ledger.json").read_text())["steps"][1]
    (out / "ledger.json").unlink()
    compress(root, out, *workload, "--resume")
    after = json.loads((out / "ledger.json").read_text())["steps"][1]
    assert after["size_bytes"] == before["size_bytes"]
    assert after["seconds"] is None, "what was not measured is not invented"
