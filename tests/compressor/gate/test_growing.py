"""Looking again and again at growing samples: wrong no more often than one look, and found all the same."""

import json

import numpy as np
import pytest

from benchmarks.growing_gate import (
    LOOKS,
    SPENT,
    TEXT_LIMIT,
    TIME_LIMIT,
    of_documents,
    of_documents_and_times,
)
from compressor.gate.decide import Verdict
from compressor.gate.growing import spent
from compressor.gate.limits import ALPHA
from compressor.ledger import load_ledger

TRIALS = 1500
PARTS = 300  # trials, each of which goes through all of the decision


def bound(trials):
    """Three standard errors of the simulation up."""
    return ALPHA + 3 * (ALPHA * (1 - ALPHA) / trials) ** 0.5


def growing(*how):
    """(a PASS at any look, a FAIL at any look), shares of all trials."""
    found = of_documents(TRIALS, *how)
    return found[Verdict.PASS] / TRIALS, found[Verdict.FAIL] / TRIALS


def test_what_all_looks_spend_is_alpha():
    assert sum(spent(ALPHA, look) for look in range(1, 10_000)) == pytest.approx(ALPHA, rel=1e-3)
    assert SPENT[0] == ALPHA / 2


def test_five_looks_are_wrong_no_more_often_than_one_may_be():
    """At a change exactly as large as the limit every verdict is wrong, a PASS as well as a FAIL."""
    passed, failed = growing(1, 0.02)
    assert passed < bound(TRIALS)
    assert failed < bound(TRIALS)
    assert growing(2, 0.0)[1] < 0.01, "a change within the limit"


def test_looks_that_spend_all_of_alpha_each_are_wrong_more_often():
    assert max(growing(1, 0.02, [ALPHA] * len(LOOKS))) > 1.5 * ALPHA


def test_what_is_there_is_found_in_the_end():
    assert growing(3, 0.012)[0] > 0.8
    assert growing(4, 0.028)[1] > 0.8


# ---- beside what does not grow


def beside(*how):
    """Shares of (PASS, FAIL) of a text that grows and times that do not."""
    found = of_documents_and_times(PARTS, *how)
    return found[Verdict.PASS] / PARTS, found[Verdict.FAIL] / PARTS


def test_times_beside_a_growing_text_make_no_more_wrong_verdicts():
    assert beside(1, 0.0, TIME_LIMIT)[0] < bound(PARTS), "a PASS, and they are as slow as the limit says"
    assert beside(2, TEXT_LIMIT, 0.0)[0] < bound(PARTS), "a PASS, and the text is as much worse as its limit says"
    passed, failed = beside(3, TEXT_LIMIT, TIME_LIMIT)
    assert passed < bound(PARTS)
    assert failed < bound(PARTS), "a FAIL, and both are just within their limits"


def test_times_beside_a_growing_text_are_found():
    assert beside(4, 0.0, 0.0)[0] > 0.8
    assert beside(5, 0.0, 0.12)[1] > 0.8
    assert beside(6, 0.04, 0.0)[1] > 0.8


# ---- the command


@pytest.fixture
def run(llmc, tiny_model, tmp_path):
    """A run that has measured the first windows of a text that goes on; 24 of them, of 16 tokens."""
    words = np.random.default_rng(0).choice(["one ", "two ", "red ", "sky ", "tea "], 6000)
    (tmp_path / "eval.txt").write_text("".join(words))
    out = tmp_path / "out"
    passes, text = ("--pass", "rtn:group_size=32"), ("--eval", tmp_path / "eval.txt", "--eval-length", 16)
    small = ("--prompt", 4, "--output-tokens", 2)
    code, _, said = llmc("compress", tiny_model("llama"), "-t", "onnx-int4", *passes, *text, *small, "-o", out)
    assert code == 0, said
    return out


def decided(llmc, run, limit, *more):
    code, shown, said = llmc("gate", run, "--max-kl", limit, "--more-samples", "--json", *more)
    return code, json.loads(shown) if shown else said


def kl(run):
    return load_ledger(run).steps[-1].quality.kl.value


def test_it_measures_until_it_can_decide_and_leaves_the_run_alone(llmc, run):
    before = (run / "ledger.json").read_bytes()
    code, found = decided(llmc, run, kl(run) * 1.03)
    (finding,) = found["findings"]
    assert finding["samples"] > 24 * 15
    assert (finding["samples"] / 15 / 24) in (2, 4, 8, 16, 32, 62.5)
    assert found["alpha"] < ALPHA / 2
    assert (run / "ledger.json").read_bytes() == before
    more = load_ledger(run / "more-samples")
    assert [row.name for row in more.steps] == ["original", "onnx-int4"]
    assert more.steps[1].samples.count == finding["samples"]
    assert code == found["exit_code"]


def test_what_is_clear_needs_no_more_text_and_half_of_alpha(llmc, run):
    code, found = decided(llmc, run, kl(run) * 3)
    assert (code, found["alpha"]) == (0, ALPHA / 2)
    assert found["findings"][0]["samples"] == 24 * 15


def test_looks_are_counted_over_commands_and_the_budget_ends_them(llmc, run):
    code, found = decided(llmc, run, kl(run), "--budget", "0")
    assert (code, found["alpha"]) == (3, ALPHA / 2)
    assert "The budget is spent; the same command goes on from here." in found["notes"]
    assert decided(llmc, run, kl(run), "--budget", "0")[1]["alpha"] == pytest.approx(ALPHA / 6)


def test_more_windows_are_measured_as_the_first_ones_were(llmc, run, tmp_path, tiny_model):
    from pyarrow import parquet

    decided(llmc, run, kl(run) * 1.03)
    grown = load_ledger(run / "more-samples")
    windows = grown.texts["evaluation"].windows
    again = tmp_path / "again"
    text = ("--eval", tmp_path / "eval.txt", "--eval-length", 16, "--measure", "full", "--prompt", 4)
    code, _, said = llmc(
        "compress", load_ledger(run).model, "-t", "onnx-int4", "--pass", "rtn:group_size=32", *text,
        "--output-tokens", 2, "-o", again,
    )  # fmt: skip
    assert code == 0, said
    whole = parquet.read_table(again / load_ledger(again).steps[-1].samples.path).to_pandas()
    found = parquet.read_table(run / "more-samples" / grown.steps[1].samples.path).to_pandas()
    expected = whole[whole.window < windows]
    assert (found.token.to_numpy() == expected.token.to_numpy()).all()
    assert found.loss.to_numpy() == pytest.approx(expected.loss.to_numpy(), abs=1e-5)
    assert found.kl.to_numpy() == pytest.approx(expected.kl.to_numpy(), abs=1e-5)


def test_times_and_tasks_are_judged_beside_it_as_they_were_measured(llmc, run, tmp_path):
    lines = [f'{{"text": "one red tea", "label": {number % 2}}}\n' for number in range(30)]
    (tmp_path / "mood.jsonl").write_text("".join(lines))
    task = "kind: classification\ndata: mood.jsonl\nprompt: '{{ text }} is'\nanswer: label\nchoices: [' sky', ' two']\n"
    (tmp_path / "mood.yaml").write_text(task)
    assert llmc("score", run, "--task", tmp_path / "mood.yaml")[0] == 0
    code, found = decided(llmc, run, kl(run) * 3, "--max-accuracy-drop", "0.1%")
    assert [one["verdict"] for one in found["findings"]] == ["PASS", "INCONCLUSIVE"]
    assert found["findings"][0]["samples"] == 24 * 15, "more text would tell nothing of the task"
    assert "The text has told what it can; what is open was measured apart from it." in found["notes"]
    generous = ("--max-latency-increase", "100000%", "--max-accuracy-drop", "99%")
    code, found = decided(llmc, run, kl(run) * 1.03, *generous)
    text, *others = found["findings"]
    assert text["samples"] > 24 * 15
    assert [one["metric"] for one in others] == ["task:mood", "ttft", "itl"]
    assert [one["samples"] for one in others] == [30, 5, 5]
    assert {one["verdict"] for one in others} == {"PASS"}
    assert code == found["exit_code"]


def test_a_baseline_grows_with_it(llmc, run, tmp_path):
    base, small = tmp_path / "base", ("--eval-length", 16, "--prompt", 4, "--output-tokens", 2)
    words = ("-t", "onnx-int4", "--pass", "rtn:group_size=64", "--eval", tmp_path / "eval.txt", *small)
    code, _, said = llmc("compress", load_ledger(run).model, *words, "-o", base)
    assert code == 0, said
    kept = (base / "ledger.json").read_bytes()
    grown = ("--more-samples", "--json", "--against", base)
    code, shown, said = llmc("gate", run, "--max-perplexity-increase", "0.01%", *grown, "--budget", 1)
    found = json.loads(shown)
    (finding,) = found["findings"]
    assert found["against"] == f"onnx-int4 of {base}/more-samples"
    assert (base / "ledger.json").read_bytes() == kept
    ours, theirs = load_ledger(run / "more-samples"), load_ledger(base / "more-samples")
    assert ours.texts["evaluation"].digest == theirs.texts["evaluation"].digest
    assert finding["samples"] == theirs.steps[1].samples.count
    assert np.log(finding["before"]) == pytest.approx(np.log(theirs.steps[1].quality.perplexity.value), abs=1e-4)
    assert code == found["exit_code"]


def test_what_more_text_does_not_tell_is_refused(llmc, run, tmp_path):
    code, _, said = llmc("gate", run, "--max-latency-increase", "5%", "--more-samples")
    assert (code, "no limit is on a metric of the text" in said) == (2, True)
    (tmp_path / "eval.txt").write_text("another text " * 3000)
    code, said = decided(llmc, run, "0.1")
    assert (code, "is another now" in said) == (2, True)
