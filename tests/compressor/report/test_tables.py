from dataclasses import replace

import pytest

from compressor.ledger import ArtifactRecord, Ledger, StepRecord, TextRecord, Verification, load_ledger
from compressor.measure.accuracy import Quality
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate
from compressor.report import tables
from compressor.report.markdown import render
from compressor.report.numbers import estimate, number


@pytest.mark.parametrize(
    ("value", "percent", "shown"),
    [
        (Estimate(33.28123, 0.5123), False, "33.28 ± 0.51"),
        (Estimate(537.7, 41.2), False, "538 ± 41"),
        (Estimate(0.28714, 0.00812), False, "0.2871 ± 0.0081"),
        (Estimate(-0.0000004, 0.0000001), False, "(-4 ± 1) × 10⁻⁷"),
        (Estimate(-9.4e-11, 9e-10), False, "0"),
        (Estimate(2.455e-5, 1e-6), False, "0.000025 ± 0.000001"),
        (Estimate(float("nan"), 1.0), False, "not a number"),
        (Estimate(0.00002, 0.0001), False, "0.0000 ± 0.0001"),
        (Estimate(0.0000123456, 0.00003), True, "0.00 ± 0.00%"),
        (Estimate(2.4550123, 0.00001), False, "2.45501 ± 0.00001"),
        (Estimate(0.71234, 0.0049), True, "71.23 ± 0.49%"),
        (Estimate(1.0, 0.0), True, "100%"),
        (Estimate(2.5, None), False, "2.5"),
        (Estimate(float("nan"), float("nan")), True, "not a number"),
        (Estimate(float("inf"), float("inf")), False, "∞"),
        (Estimate(2.5, float("nan")), False, "2.5"),
        (Estimate(2.5, float("inf")), True, "250%"),
    ],
)
def test_estimates_show_the_digits_that_their_error_leaves(value, percent, shown):
    assert estimate(value, percent) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2227.4, "2227"),
        (12345678.0, "12345678"),
        (0.0005, "0.0005"),
        (0.05, "0.05"),
        (1.0, "1"),
        (-2.5, "-2.5"),
        (0.0, "0"),
        (8.12e-9, "8.1 × 10⁻⁹"),
        (float("inf"), "∞"),
    ],
)
def test_numbers_have_no_exponents(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(None, "–"), (900, "900 B"), (4096, "4 KiB"), (3_500_000, "3.3 MiB"), (15 << 30, "15.0 GiB")]
)
def test_sizes(count, shown):
    assert tables.size(count) == shown


@pytest.fixture
def ledger():
    one = Estimate(1.0, 0.1)
    quality = Quality(one, one, one, one)
    times = {"p50": 12.0, "p95": 15.0}
    step = StepRecord(
        "gptq", 3.0, 1 << 30, 1 << 20, 4.5, "transformers 5 CPU", quality, [Latency(1, 8, 4, times, times, one)]
    )
    return Ledger(
        model="m",
        recipe={"passes": [{"gptq": {}}]},
        environment={"cpu": "a | b", "packages": {"torch": "2"}},
        texts={"evaluation": TextRecord("e.txt", 3, 64, "d", ["noted"])},
        warnings=["beware"],
        steps=[StepRecord("original", quality=quality), step, StepRecord("trt-int4", not_run="no GPU")],
        artifact=ArtifactRecord("trt-int4", "out/artifact", 10, "d", Verification("reader", 5, []), "serve it"),
    )


def test_rows_without_a_figure_stay_out_of_its_table(ledger):
    accuracy, cost, latency = tables.all_tables(ledger)
    assert [row[0] for row in accuracy.rows] == ["original", "gptq"]
    assert [row[0] for row in cost.rows] == ["original", "gptq", "trt-int4"]
    assert [row[0] for row in latency.rows] == ["gptq"]
    assert "transformers 5 CPU" in latency.title


def test_everything_odd_is_a_remark(ledger):
    remarks = tables.remarks(ledger)
    assert remarks == ["beware", "trt-int4: not run, no GPU"]


def test_a_row_that_computes_no_numbers_is_a_remark(ledger):
    odd = Estimate(float("nan"), float("nan"))
    ledger.steps[1].quality = Quality(odd, odd, odd, odd)
    assert tables.remarks(ledger)[1].startswith("gptq: its perplexity is no number")


def test_a_mismatch_cannot_be_overlooked(ledger):
    assert tables.verdict(ledger) == "5 weights read back by reader: bit-identical."
    ledger.artifact.verified.mismatches.append("x")
    assert "1 DIFFER" in tables.verdict(ledger)


def test_markdown_has_tables_of_equal_width(ledger):
    text = render([ledger])
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("| step"):
            assert len({line.count("|") for line in lines}) == 1


def test_the_ledger_file_round_trips(ledger, tmp_path):
    ledger.save(tmp_path)
    found = load_ledger(tmp_path)
    assert found.digest is not None
    assert replace(found, digest=None) == ledger


def test_notes_that_differ_in_names_and_numbers_only_are_one():
    notes = [f"model.layers.{layer}.mlp.up_proj: {layer + 1} output channels are zero" for layer in range(44)]
    assert tables.one_of_a_kind(["a cast", *notes, "12 linears"]) == [
        "a cast",
        "model.layers.0.mlp.up_proj: 1 output channels are zero (and 43 more like it)",
        "12 linears",
    ]
