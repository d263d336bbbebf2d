"""`llmc compress` audits its calibration text: noted without `--strict`, refused before any work with it."""

import json
from itertools import pairwise

import numpy as np
import pytest

from compressor.ledger import load_ledger
from compressor.report.files import render_html, render_markdown

WORDS = """about after again along animal answer because before begin between bird book both carry change children
city close country cold different door earth enough every example family father field follow food forest found friend
garden great group hand happy heard house important island kind large learn letter light little living long made
morning mother mountain moved music near never night number often other page paper people place plant play quick rain
read river road round school second sentence should show small snow something song sound spell spring stand start
still stop story street summer talk teacher their thing think thought three through together town tree under until
very voice walk warm watch water weather white whole window winter without woman word work world write year
young"""


@pytest.fixture
def good(tmp_path):
    """Options with calibration text in which the auditor finds nothing, and evaluation text of its own."""
    draw = np.random.default_rng(0).choice
    for name in ("calibration", "evaluation"):
        said = [" ".join(draw(WORDS.split(), 40)) for _ in range(12)]
        chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in pairwise(said)]
        lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats[::2])
        (tmp_path / f"{name}.jsonl").write_text(lines)
    calibration = ("--calibration", tmp_path / "calibration.jsonl", "--samples", 4, "--length", 256)
    evaluation = ("--eval", tmp_path / "evaluation.jsonl", "--eval-length", 256)
    return [*calibration, *evaluation, "--prompt", 8, "--output-tokens", 4]


def test_what_the_auditor_finds_is_in_the_ledger_and_the_reports(compress, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    assert compress(tiny_model("llama"), out, *workload)[0] == 0
    ledger = load_ledger(out)
    found = {one.name: one.outcome for one in ledger.audit}
    assert list(found) == ["tokens", "duplicates", "overlap", "languages", "chat template"]
    assert found["overlap"] == "warning"
    assert found["languages"] == "not checked"
    assert any(one.startswith("calibration text, overlap: ") for one in ledger.warnings)
    assert set(ledger.audit[0].figures["layers"].values()) == {8 * 64}
    page = render_html(out)
    assert page.index("Calibration text</h2>") < page.index("All figures</h2>")
    assert "· languages, not checked: " in render_markdown(out)


def test_text_that_was_not_calibrated_on_is_not_audited(compress, tiny_model, tmp_path, workload):
    assert compress(tiny_model("llama"), tmp_path / "out", *workload, spec="rtn:group_size=32")[0] == 0
    assert load_ledger(tmp_path / "out").audit == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_strict_refuses_before_any_work(compress, tiny_model, tmp_path, workload, dry):
    code, _, said = compress(tiny_model("llama"), tmp_path / "out", *workload, "--strict", *dry)
    assert code == 2
    assert "The calibration text does not pass --strict: " in said
    assert "overlap, warning: " in said
    assert "languages, not checked: " in said
    assert not (tmp_path / "out").exists()


def test_strict_lets_through_what_is_all_right(compress, tiny_model, tmp_path, good, languages):
    code, _, said = compress(tiny_model("llama"), tmp_path / "out", *good, "--strict")
    assert code == 0, said
    assert {one.outcome for one in load_ledger(tmp_path / "out").audit} == {"ok"}
    assert "strict: true" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--strict"], "give --calibration too"),
        (["--calibration", "TEXT", "--strict"], "no pass of this run uses any"),
    ],
)
def test_strict_without_anything_to_audit_is_no_success(compress, tiny_model, tmp_path, text, words, sentence):
    words = [text if word == "TEXT" else word for word in words]
    code, _, said = compress(tiny_model("llama"), tmp_path / "out", *words, spec="rtn:group_size=32")
    assert code == 2
    assert sentence in said
    assert not (tmp_path / "out").exists()
