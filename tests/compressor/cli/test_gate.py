"""`llmc gate`: the right verdict, the right exit code, and no verdict where there cannot be one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from compressor.ledger import ArtifactRecord, Ledger, StepRecord, TextRecord, Verification, load_ledger
from compressor.ledger import SamplesRecord as Record
from compressor.measure import samples
from compressor.measure.accuracy import TokenScores
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate

ROOT = Path(__file__).parents[3]
PERPLEXITY = "--max-perplexity-increase"
WINDOWS, LENGTH = 40, 33
TOKENS = np.random.default_rng(0).integers(0, 256, (WINDOWS, LENGTH))


def scores(worse=0.0, seed=1, windows=WINDOWS):
    """A model whose losses are larger by `worse` on average; it is wrong more often where the losses say so."""
    shape = (windows, LENGTH - 1)
    original = np.random.default_rng(2).gamma(2.0, 1.0, shape).astype(np.float32)
    loss = (original + np.random.default_rng(seed).normal(worse, 0.1, shape)).astype(np.float32)
    return TokenScores(original, loss, np.abs(loss - original) / 10, np.ones(shape, bool), original < 1, loss < 1)


def keep(out, name, found, origins=None):
    path = samples.path_of(name, name)
    digest = samples.write(out / path, samples.table(TOKENS[: len(found.loss)], origins, found))
    row = StepRecord(name, key=name, quality=found.quality, runtime="torch")
    row.samples = Record(path.as_posix(), digest, found.loss.size)
    return row


def timed(row, milliseconds, turns):
    times = {"p50": milliseconds, "p95": milliseconds}
    repeats = [milliseconds * factor for factor in (1.0, 1.01, 0.99, 1.0, 1.01)]
    row.latency = [
        Latency(1, 8, 4, times, times, Estimate(1.0, 0.1), {"ttft_ms": repeats, "itl_ms": repeats[::-1]}, turns)
    ]
    return row


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a run whose artifact, `onnx-int4`, has these scores."""

    def make(name="out", found=None, origins=None, milliseconds=100.0, **texts):
        out = tmp_path / name
        out.mkdir()
        found = scores() if found is None else found
        length = texts.pop("length", LENGTH)
        text = TextRecord("eval.txt", len(found.loss), length, texts.pop("digest", "d1"), [])
        rows = [
            timed(
                keep(out, "original", TokenScores(found.original_loss, found.original_loss, *vars_of(found))), 100.0, []
            ),
            timed(keep(out, "onnx-int4", found, origins), milliseconds, ["original", "onnx-int4"]),
        ]
        rows[0].key = texts.pop("original", "o1")
        verified = Verification("reader", 5, [])
        artifact = ArtifactRecord("onnx-int4", "artifact", 1, "d", verified, "run it")
        machine = {"cpu": texts.pop("cpu", "X"), "cores": 2, "threads": 2}
        Ledger(
            "m", {"passes": []}, environment=machine, texts={"evaluation": text}, steps=rows, artifact=artifact
        ).save(out)
        return out

    return make


def vars_of(found):
    return found.kl * 0, found.same_top1, found.original_correct, found.original_correct


def edit(out, change):
    ledger = load_ledger(out)
    change(ledger)
    ledger.save(out)


# ---- verdicts


@pytest.mark.parametrize(
    ("worse", "limit", "code", "verdict"),
    [(0.001, "2%", 0, "PASS"), (0.08, "2%", 1, "FAIL"), (0.0198, "2%", 3, "INCONCLUSIVE"), (-0.05, "0%", 0, "PASS")],
)
def test_the_verdict_comes_first_and_is_the_exit_code(llmc, run, worse, limit, code, verdict):
    found, shown, _ = llmc("gate", run(found=scores(worse)), PERPLEXITY, limit)
    assert found == code
    assert shown.startswith(f"{verdict}  onnx-int4 against original: perplexity ")
    assert "1280 tokens in 40 windows" in " ".join(shown.split())


def test_json_has_every_figure(llmc, run):
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


def test_too_few_documents_are_no_evidence_however_many_tokens(llmc, run):
    origins = np.repeat(np.arange(4), 10)[:, None] * np.ones(LENGTH, int)
    code, shown, _ = llmc("gate", run(found=scores(0.08), origins=origins), PERPLEXITY, "2%")
    assert code == 3
    assert "only 4 documents; a verdict needs 20" in " ".join(shown.split())


def test_windows_that_follow_their_neighbours_are_pointed_out(llmc, run):
    drifting = scores()
    drifting.loss[:] += np.sin(np.arange(WINDOWS) / 6)[:, None].astype(np.float32) / 10
    _, shown, _ = llmc("gate", run(found=drifting), PERPLEXITY, "2%")
    assert "Neighbours are alike" in " ".join(shown.split())


def test_a_model_that_computes_no_numbers_fails(llmc, run):
    broken = scores()
    broken.loss[3, 4] = np.nan
    code, shown, _ = llmc("gate", run(found=broken), PERPLEXITY, "2%", "--max-accuracy-drop", "2%", "--json")
    assert code == 1
    assert {one["reason"] for one in json.loads(shown)["findings"]} == {"1 of 1280 tokens have no finite loss"}


def test_an_original_that_computes_no_numbers_is_no_yardstick(llmc, run):
    broken = scores()
    broken.original_loss[3, 4] = np.nan
    code, _, err = llmc("gate", run(found=broken), PERPLEXITY, "2%")
    assert code == 2
    assert "original has losses that are not finite" in err


def test_a_baseline_is_compared_row_by_row(llmc, run):
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


def test_an_artifact_that_was_not_run_is_judged_by_the_step_it_holds(llmc, run):
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


# ---- what cannot be judged: exit code 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digest": "d2"}, "was measured on other data"),
        ({"length": 64}, "on windows of 64 tokens"),
        ({"original": "o2"}, "is of another original"),
    ],
)
def test_a_baseline_of_something_else_is_refused(llmc, run, options, message):
    code, _, err = llmc("gate", run(), "--against", run("other", **options), PERPLEXITY, "2%")
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ledger: setattr(ledger, "schema", 3), "has ledger schema 3; this version reads 1 and 2"),
        (lambda ledger: setattr(ledger.steps[1], "samples", None), "it is of an earlier version"),
        (lambda ledger: ledger.steps.append(ledger.steps[1]), "2 rows of"),
        (lambda ledger: ledger.steps.pop(), "is what rows are compared with"),
        (lambda ledger: setattr(ledger, "artifact", None), "did not get as far as an artifact"),
    ],
)
def test_ledgers_that_are_not_enough(llmc, run, change, message):
    out = run()
    edit(out, change)
    row = ("--row", "onnx-int4") if "2 rows" in message else ()
    code, _, err = llmc("gate", out, PERPLEXITY, "2%", *row)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda path: path.unlink(), "are missing"), (lambda path: path.write_bytes(b"x"), "not those that the ledger")],
)
def test_samples_that_are_gone_or_changed(llmc, run, damage, message):
    out = run()
    damage(out / load_ledger(out).steps[1].samples.path)
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is no limit to judge by"),
        ([PERPLEXITY, "2"], "2 is more than all; write 2% for 0.02"),
        ([PERPLEXITY, "much"], "Write a share as 2% or as 0.02"),
        ([PERPLEXITY, "-1%"], "A limit is a number from 0 upwards"),
        (["--max-kl", "1", "--lm-eval", "a", "b"], "--lm-eval gives accuracies, and no limit is on them"),
        (["--max-kl", "nan"], "--max-kl nan is not allowed"),
        ([PERPLEXITY, "2%", "--alpha", "0.7"], "--alpha 0.7 is not allowed"),
        ([PERPLEXITY, "2%", "--row", "onnx-int5"], "did you mean 'onnx-int4'?"),
    ],
)
def test_bad_requests(llmc, run, words, message):
    code, _, err = llmc("gate", run(), *words)
    assert code == 2
    assert message in err


def test_zero_samples(llmc, run):
    out = run()
    empty = TokenScores(*(values[:0] for values in vars(scores()).values()))
    digest = samples.write(out / "samples/empty.parquet", samples.table(TOKENS[:0], None, empty))
    edit(out, lambda ledger: setattr(ledger.steps[1], "samples", Record("samples/empty.parquet", digest, 0)))
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert "holds no samples" in err


def test_nothing_was_measured(llmc, run):
    out = run()
    edit(out, lambda ledger: vars(ledger.steps[1]).update(quality=None, samples=None, not_run="switched off"))
    code, _, err = llmc("gate", out, "--row", "onnx-int4", PERPLEXITY, "2%")
    assert code == 2
    assert "was not measured" in err


# ---- reports


def test_junit_has_a_case_a_metric(llmc, run, tmp_path):
    llmc("gate", run(found=scores(0.08)), PERPLEXITY, "2%", "--max-accuracy-drop", "5.5%", "--max-kl", "0.5",
         "--junit", tmp_path / "ci" / "gate.xml")  # fmt: skip
    (suite,) = ElementTree.parse(tmp_path / "ci" / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    failed, *others = suite.findall("testcase")
    assert failed.find("failure").get("message").startswith("perplexity ")
    assert all(case.find("failure") is None for case in others)


def test_inconclusive_is_an_error_in_junit_and_odd_characters_do_no_harm(run):
    from compressor.gate import junit
    from compressor.gate.gate import gate
    from compressor.gate.limits import Limits
    from compressor.gate.subject import Run

    out = run(found=scores(0.0198))
    edit(out, lambda ledger: setattr(ledger.steps[1], "name", "a<b>\x00&"))
    decision = gate(Run.open(out), Limits(max_perplexity_increase="2%"))
    (suite,) = ElementTree.fromstring(junit.render(decision))
    assert suite.get("errors") == "1"
    assert suite.find("testcase/error").get("type") == "INCONCLUSIVE"
    assert suite.get("name") == "a<b>\ufffd& against original"


def test_markdown_is_for_a_pull_request(llmc, run, tmp_path):
    llmc("gate", run(), PERPLEXITY, "2%", "--markdown", tmp_path / "gate.md")
    text = (tmp_path / "gate.md").read_text()
    assert text.startswith("### ✅ llmc gate: PASS\n\nonnx-int4 against original: perplexity at most ")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


# ---- the recipe's gate, and the action


@pytest.mark.parametrize(("gate", "code"), [({"max_kl": 1000}, 0), ({"max_perplexity_increase": "0%", "max_kl": 0}, 1)])
def test_compress_ends_with_the_gate_of_its_recipe(llmc, tiny_model, tmp_path, gate, code):
    (tmp_path / "text.txt").write_text("The fox sees the hen near the old mill, and is called. " * 40)
    recipe = {
        "model": str(tiny_model("llama")), "target": "hf", "passes": ["rtn:group_size=32"], "gate": gate,
        "measure": {"texts": str(tmp_path / "text.txt"), "length": 64, "latency": {"prompt": 8, "output": 2}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found, shown, err = llmc("compress", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert found == code, err
    assert ("PASS" if code == 0 else "FAIL") in shown
    assert json.loads((tmp_path / "out" / "gate.json").read_text())["exit_code"] == code
    assert llmc("gate", tmp_path / "out")[0] == code, "the recipe's limits hold without others"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": {"max_perplexity_increase": "2%"}}, "no held-out text"),
        ({"gate": {"alpha": 0.1}}, "has no limit"),
        ({"gate": {"max_kl": 1}, "measure": {"effort": "none"}}, "measuring is switched off"),
        (
            {"gate": {"max_latency_increase": "5%"}, "target": "trt-int4", "passes": ["rtn:group_size=64"]},
            "cannot be run",
        ),
        ({"gate": {"max_perplexity_increase": 2}}, "2 is more than all"),
        ({"gate": {"max_perplexity": "2%"}}, "did you mean 'max_perplexity_increase'?"),
    ],
)
def test_a_gate_that_cannot_decide_is_refused_before_any_work(llmc, tiny_model, tmp_path, changes, message):
    recipe = {"model": str(tiny_model("llama")), "target": "hf", "passes": ["rtn:group_size=32"]} | changes
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = llmc("compress", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("worse", "inconclusive", "code", "verdict"),
    [(0.0, "fail", 0, "PASS"), (0.08, "fail", 1, "FAIL"), (0.0198, "fail", 3, "INCONCLUSIVE"),
     (0.0198, "pass", 0, "INCONCLUSIVE"), (None, "fail", 2, None)],
)  # fmt: skip
def test_the_action_stops_a_job_with_the_verdict(run, tmp_path, worse, inconclusive, code, verdict):
    action = yaml.safe_load((ROOT / ".github/actions/llmc-gate/action.yml").read_text())
    (step,) = [step for step in action["runs"]["steps"] if step.get("id") == "gate"]
    out = "no-such-run" if worse is None else run(found=scores(worse))
    given = {"ledger": str(out), "max-perplexity-increase": "2%", "inconclusive": inconclusive}
    defaults = {name: str(one.get("default", "")) for name, one in action["inputs"].items()}
    inputs = {f"${{{{ inputs.{name} }}}}": value for name, value in (defaults | given).items()}
    environment = {name: inputs[value] for name, value in step["env"].items()}
    (tmp_path / "llmc").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from compressor.cli import main; main()" "$@"\n'
    )
    (tmp_path / "llmc").chmod(0o755)
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(tmp_path / "o"),
                    "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "PYTHONPATH": str(ROOT)}  # fmt: skip
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    found = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stderr
    if verdict is None:
        assert "There is no ledger" in found.stderr
        return
    assert (tmp_path / "o").read_text() == f"verdict={verdict}\n"
    assert verdict in (tmp_path / "summary").read_text()
    assert json.loads((tmp_path / "llmc-gate/gate.json").read_text())["verdict"] == verdict


def test_the_example_workflow_gives_the_action_only_inputs_that_it_has():
    action = yaml.safe_load((ROOT / ".github/actions/llmc-gate/action.yml").read_text())
    workflow = yaml.safe_load((ROOT / "examples/ci/gate.yml").read_text())
    uses = [step for step in workflow["jobs"]["gate"]["steps"] if step.get("uses", "").endswith("llmc-gate")]
    assert len(uses) == 1
    assert set(uses[0]["with"]) <= set(action["inputs"])
