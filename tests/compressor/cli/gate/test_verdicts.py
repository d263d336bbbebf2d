"""`llmc gate`: the right verdict, and the right exit code."""

import json

import numpy as np
import pytest

from compressor.ledger import StepRecord

PERPLEXITY = "--max-perplexity-increase"
WINDOWS, LENGTH = 40, 33  # of the runs that the fixture makes


@pytest.mark.parametrize(
    ("worse", "limit", "code", "verdict"),
    [(0.001, "2%", 0, "PASS"), (0.08, "2%", 1, "FAIL"), (0.0198, "2%", 3, "INCONCLUSIVE"), (-0.05, "0%", 0, "PASS")],
)
def test_the_verdict_comes_first_and_is_the_exit_code(llmc, run, worse, limit, code, verdict, scores):
    found, shown, _ = llmc("gate", run(found=scores(worse)), PERPLEXITY, limit)
    assert found == code
    assert shown.startswith(f"{verdict}  onnx-int4 against original: perplexity ")
    assert "1280 tokens in 40 windows" in " ".join(shown.split())


def test_json_has_every_figure(llmc, run, scores):
    out = run(found=scores(0.05))
    code, shown, _ = llmc("gate", out, PERPLEXITY, "2%", "--max-accuracy-drop", "0.5", "--max-kl", "0.1", "--json")
    found = json.loads(shown)
    assert (code, found["schema"], found["verdict"], found["exit_code"]) == (1, 1, "FAIL", 1)
    perplexity, accuracy, kl = found["findings"]
    change = scores(0.05)
    assert perplexity["change"] == pytest.approx(np.expm1((change.loss - change.original_loss).mean()), rel=1e-4)
    assert perplexity["lower"] < perplexity["change"] < perplexity["upper"]
    assert perplexity["p_adjusted"] == pytest.approx(3 * perplexity["p_value"])
    assert accuracy["metric"] == "next_token_accuracy"
    assert accuracy["verdict"] == kl["verdict"] == "PASS"
    assert (perplexity["samples"], perplexity["clusters"], perplexity["cluster_unit"]) == (1280, 40, "window")


def test_documents_are_what_is_drawn(llmc, run):
    origins = np.repeat(np.arange(WINDOWS // 2), 2)[:, None] * np.ones(LENGTH, int)
    _, shown, _ = llmc("gate", run(origins=origins), PERPLEXITY, "2%", "--json")
    (found,) = json.loads(shown)["findings"]
    assert (found["clusters"], found["cluster_unit"], found["verdict"]) == (20, "document", "PASS")
    assert json.loads(shown)["notes"] == []


def test_too_few_documents_are_no_evidence_however_many_tokens(llmc, run, scores):
    origins = np.repeat(np.arange(4), 10)[:, None] * np.ones(LENGTH, int)
    code, shown, _ = llmc("gate", run(found=scores(0.08), origins=origins), PERPLEXITY, "2%")
    assert code == 3
    assert "only 4 documents; a verdict needs 20" in " ".join(shown.split())


def test_windows_that_follow_their_neighbours_are_pointed_out(llmc, run, scores):
    drifting = scores()
    drifting.loss[:] += np.sin(np.arange(WINDOWS) / 6)[:, None].astype(np.float32) / 10
    _, shown, _ = llmc("gate", run(found=drifting), PERPLEXITY, "2%")
    assert "Neighbours are alike" in " ".join(shown.split())


def test_a_model_that_computes_no_numbers_fails(llmc, run, scores):
    broken = scores()
    broken.loss[3, 4] = np.nan
    code, shown, _ = llmc("gate", run(found=broken), PERPLEXITY, "2%", "--max-accuracy-drop", "2%", "--json")
    assert code == 1
    assert {one["reason"] for one in json.loads(shown)["findings"]} == {"1 of 1280 tokens have no finite loss"}


def test_an_original_that_computes_no_numbers_is_no_yardstick(llmc, run, scores):
    broken = scores()
    broken.original_loss[3, 4] = np.nan
    code, _, err = llmc("gate", run(found=broken), PERPLEXITY, "2%")
    assert code == 2
    assert "original has losses that are not finite" in err


def test_a_baseline_is_compared_row_by_row(llmc, run, scores):
    before, after = run("before", scores(0.05, seed=3)), run("after", scores(0.051, seed=4))
    assert llmc("gate", after, PERPLEXITY, "2%")[0] == 1
    code, shown, _ = llmc("gate", after, "--against", before, PERPLEXITY, "2%")
    assert code == 0
    assert f"onnx-int4 against onnx-int4 of {before}" in " ".join(shown.split())


def test_latency_is_judged_by_its_repeats(llmc, run):
    code, shown, _ = llmc("gate", run("slow", milliseconds=120.0), "--max-latency-increase", "5%", "--json")
    found = json.loads(shown)["findings"]
    assert code == 1
    assert [one["metric"] for one in found] == ["ttft", "itl"]
    assert found[0]["change"] == pytest.approx(0.2)
    assert found[0]["cluster_unit"] == "repeat, in turns"
    assert llmc("gate", run("fast", milliseconds=101.0), "--max-latency-increase", "5%")[0] == 0


def test_latency_of_another_run_was_not_taken_in_turns(llmc, run):
    before, after = run("before"), run("after", milliseconds=101.0)
    code, shown, _ = llmc("gate", after, "--against", before, "--max-latency-increase", "5%")
    assert code == 0
    assert "not taken in turns" in " ".join(shown.split())
    code, _, err = llmc("gate", run("other", cpu="Y"), "--against", before, "--max-latency-increase", "5%")
    assert code == 2
    assert "on another machine: its cpu is X, here Y" in err


def test_an_artifact_that_was_not_run_is_judged_by_the_step_it_holds(llmc, run, edit):
    out = run()
    edit(out, lambda ledger: ledger.steps.append(StepRecord("trt-int4", not_run="no GPU")))
    code, shown, _ = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 0
    assert "trt-int4 was not run here (no GPU): judged is onnx-int4" in " ".join(shown.split())
    edit(out, lambda ledger: ledger.artifact.verified.mismatches.append("x"))
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert "was not measured" in err


# ---- tasks


def log(folder, answers, **changes):
    folder.mkdir()
    lines = [
        {
            "doc_id": at,
            "filter": "none",
            "doc_hash": f"d{at}",
            "prompt_hash": "p",
            "target_hash": "t",
            "acc": float(right),
        }
        | (changes if at == 7 else {})
        for at, right in enumerate(answers)
    ]
    path = folder / "samples_boolq_2026-01-02T03-04-05.678.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder


def test_accuracy_of_tasks_is_judged_by_mcnemar(llmc, run, tmp_path):
    right = np.arange(1000) % 10 < 7
    worse = right & (np.arange(1000) % 20 != 1)
    before, after = log(tmp_path / "before", right), log(tmp_path / "after", worse)
    words = ("gate", run(), "--lm-eval", before, after, "--max-accuracy-drop")
    code, shown, _ = llmc(*words, "2%", "--json")
    (found,) = json.loads(shown)["findings"]
    assert code == 1
    assert (found["metric"], found["before"], found["after"]) == ("task:boolq", 0.7, 0.65)
    assert found["lower"] > 0.02
    assert llmc(*words, "10%")[0] == 0
    assert llmc(*words, "5%")[0] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_hash": "other"}, "Sample 7 of boolq has another text"),
        ({"doc_id": 8}, "is sample 8 a second time"),
        ({"acc": 0.5}, "no score that is right or wrong"),
        ({"doc_id": 99}, "hold other samples of boolq"),
    ],
)
def test_logs_that_do_not_belong_together(llmc, run, tmp_path, changes, message):
    before, after = log(tmp_path / "before", [True] * 20), log(tmp_path / "after", [True] * 20, **changes)
    code, _, err = llmc("gate", run(), "--lm-eval", before, after, "--max-accuracy-drop", "2%")
    assert code == 2
    assert message in err


def test_a_log_that_is_no_log(llmc, run, tmp_path):
    before, after = log(tmp_path / "before", [True] * 20), tmp_path / "after"
    after.mkdir()
    words = ("gate", run(), "--lm-eval", before, after, "--max-accuracy-drop", "2%")
    assert "has no samples_TASK.jsonl" in llmc(*words)[2]
    (after / "samples_boolq.jsonl").write_bytes(b'{"doc_id": "\xe9"}')
    assert "samples_boolq.jsonl:1 is not JSON in UTF-8" in llmc(*words)[2]
    (after / "samples_boolq.jsonl").write_bytes(b"\n")
    assert "are empty" in llmc(*words)[2]
