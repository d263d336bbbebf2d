import json
import re

import pytest

from compressor.measure.accuracy import Quality
from compressor.measure.statistics import Estimate
from compressor.report import comparison


@pytest.fixture
def folders(run_folder):
    small = run_folder("small", perplexity=34.0, size=100 << 20, ms=9.0)
    good = run_folder("good", judged=False, perplexity=31.0, size=200 << 20, ms=14.0)
    beaten = run_folder("beaten", judged=False, perplexity=35.0, size=210 << 20, ms=15.0)
    return [small, good, beaten]


def test_the_front_leaves_out_what_another_run_beats(folders):
    found = comparison.fronts(comparison.open_runs(folders))
    assert found.size == ["small", "good"]
    assert set(found.speed) == {"small", "good"}
    assert [one.title for one in found.figures] == [
        "Perplexity increase against size",
        "Perplexity increase against speed, onnxruntime 1 CPU, batch 1, 128 + 32 tokens",
    ]


def test_runs_that_were_judged_by_other_text_are_not_held_against_each_other(folders, make_run):
    other = make_run(perplexity=20.0, size=50 << 20)
    other.texts["evaluation"].digest = "f" * 64
    other.save(folders[2])
    runs = comparison.open_runs(folders)
    assert comparison.fronts(runs).size == ["small", "good"]
    assert "Not all runs were judged by the same text" in comparison.remarks(runs)[0]


def test_runs_of_different_originals_are_compared_by_perplexity_itself(folders, make_run):
    other = make_run(perplexity=20.0, size=50 << 20)
    other.steps[0].key = "another"
    other.save(folders[2])
    found = comparison.fronts(comparison.open_runs(folders))
    assert found.figures[0].title == "Perplexity against size"
    assert found.size == ["beaten"]


def test_a_run_whose_figures_are_no_numbers_is_compared_all_the_same(folders, make_run, llmc, tmp_path):
    other, none = make_run(), Estimate(float("nan"), float("nan"))
    other.steps[3].quality = Quality(none, none, none, none)
    other.save(folders[2])
    code, _, _ = llmc("compare", *folders, "-o", tmp_path / "page.html")
    assert code == 0
    assert not re.search(r'="-?(nan|inf)', (tmp_path / "page.html").read_text())
    runs = comparison.open_runs(folders)
    assert comparison.overview(runs).rows[2][2] == "not a number"
    assert comparison.fronts(runs).size == ["small", "good"]


def test_folders_of_the_same_name_are_told_apart(run_folder, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [run_folder("a/out"), run_folder("b/out")]
    assert [run.label for run in comparison.open_runs(paths)] == ["a/out", "b/out"]


def test_the_command_writes_a_page_and_prints_the_same(llmc, folders, tmp_path):
    page = tmp_path / "pages" / "all.html"
    code, shown, _ = llmc("compare", *folders, "-o", page)
    assert code == 0
    assert "small" in shown
    assert "★" in shown
    assert "3 runs" in page.read_text()
    code, shown, _ = llmc("compare", *folders, "--json")
    found = json.loads(shown)
    assert code == 0
    assert found["front"]["size"] == ["small", "good"]
    assert found["runs"][0]["gate"] == "FAIL"
    assert found["runs"][1]["metrics"]["kl"]["value"] == 0.09


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "There is one run, and nothing to compare it with"),
        (("--text", "x"), "--text is for a comparison of runtimes"),
        (("--runtimes", "-o", "x.html"), "--output is for a comparison of runs"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(llmc, run_folder, words, sentence):
    code, _, said = llmc("compare", run_folder("one"), *words)
    assert code == 2
    assert sentence in said


def test_report_writes_a_page_for_one_run_and_for_a_folder_of_several(llmc, folders, tmp_path):
    page = tmp_path / "one.html"
    assert llmc("report", folders[0], "--html", page)[0] == 0
    assert "Gate: FAIL" in page.read_text()
    (tmp_path / "steps").mkdir()
    assert llmc("report", tmp_path, "--html", page)[0] == 0
    assert "3 runs" in page.read_text()
