"""`llmc gate` gives no verdict where there cannot be one: exit code 2."""

import json
import shutil

import numpy as np
import pytest

from compressor.ledger import SamplesRecord, load_ledger
from compressor.measure import samples
from compressor.measure.accuracy import TokenScores

PERPLEXITY = "--max-perplexity-increase"


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
        (lambda ledger: setattr(ledger, "schema", 4), "has ledger schema 4; this version reads 1, 2 and 3"),
        (lambda ledger: setattr(ledger.steps[1], "samples", None), "it is of an earlier version"),
        (lambda ledger: ledger.steps.append(ledger.steps[1]), "2 rows of"),
        (lambda ledger: ledger.steps.pop(), "is what rows are compared with"),
        (lambda ledger: setattr(ledger, "artifact", None), "did not get as far as an artifact"),
    ],
)
def test_ledgers_that_are_not_enough(llmc, run, change, message, edit):
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


def test_zero_samples(llmc, run, scores, edit):
    out = run()
    empty = TokenScores(*(values[:0] for values in vars(scores()).values()))
    digest = samples.write(out / "samples/empty.parquet", samples.table(np.zeros((0, 33), np.int64), None, empty))
    edit(out, lambda ledger: setattr(ledger.steps[1], "samples", SamplesRecord("samples/empty.parquet", digest, 0)))
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert "holds no samples" in err


def test_nothing_was_measured(llmc, run, edit):
    out = run()
    edit(out, lambda ledger: vars(ledger.steps[1]).update(quality=None, samples=None, not_run="switched off"))
    code, _, err = llmc("gate", out, "--row", "onnx-int4", PERPLEXITY, "2%")
    assert code == 2
    assert "was not measured" in err


@pytest.mark.parametrize("time", [float("nan"), 0.0, float("inf")])
def test_times_that_are_none(llmc, run, edit, time):
    out = run()
    edit(out, lambda ledger: ledger.steps[1].latency[0].repeats["itl_ms"].__setitem__(2, time))
    code, _, err = llmc("gate", out, "--max-latency-increase", "5%")
    assert code == 2
    assert "has times that are no positive numbers" in err


def test_a_row_that_was_judged_on_a_part_of_the_text(llmc, run, edit):
    out = run()
    edit(out, lambda ledger: setattr(ledger.texts["evaluation"], "windows", 41))
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert "was judged on a part of the text only." in err


# ---- the artifact and the ledger are what they were


def test_a_changed_byte_of_the_artifact_gets_no_verdict(llmc, run):
    out = run()
    assert llmc("gate", out, PERPLEXITY, "2%")[0] == 0
    (out / "artifact" / "model.onnx").write_bytes(b"Weights")
    for row in ((), ("--row", "onnx-int4")):
        code, shown, err = llmc("gate", out, PERPLEXITY, "2%", *row)
        assert (code, shown) == (2, "")
        assert f"{out / 'artifact'} is not the artifact that was measured: the SHA-256 of its files is " in err
        assert f"`llmc verify {out}` says what differs" in err


def test_an_artifact_that_is_gone_gets_no_verdict(llmc, run):
    out = run()
    shutil.rmtree(out / "artifact")
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert f"The artifact is not at {out / 'artifact'}" in err


def test_of_a_baseline_ledger_and_samples_are_enough(llmc, run):
    base = run("base")
    shutil.rmtree(base / "artifact")
    assert llmc("gate", run("now"), "--against", base, PERPLEXITY, "2%")[0] == 0


def test_a_step_is_judged_without_the_artifact(llmc, run, edit):
    out = run()
    edit(out, lambda ledger: (setattr(ledger.steps[1], "name", "rtn"), setattr(ledger.artifact, "target", "hf")))
    shutil.rmtree(out / "artifact")
    assert llmc("gate", out, "--row", "rtn", PERPLEXITY, "2%")[0] == 0


def test_a_ledger_that_was_changed_is_refused(llmc, run):
    out = run()
    file = out / "ledger.json"
    text = file.read_text()
    file.write_text(text.replace('"count": 1280', '"count": 1279'))
    code, _, err = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 2
    assert f"{file} does not fit the digest of itself" in err
    file.write_text(json.dumps(json.loads(text)))  # another spelling of the same
    assert llmc("gate", out, PERPLEXITY, "2%")[0] == 0


def test_a_ledger_without_a_digest_is_judged_and_says_so(llmc, run):
    out = run()
    plain = json.loads((out / "ledger.json").read_text())
    del plain["digest"]
    (out / "ledger.json").write_text(json.dumps(plain))
    code, shown, _ = llmc("gate", out, PERPLEXITY, "2%")
    assert code == 0
    assert "is of an earlier version and has no digest of itself" in " ".join(shown.split())
    assert "none: it is of an earlier version" in llmc("inspect", out)[1]
