"""What charts write: whole names, and ticks that differ."""

import re
from itertools import pairwise

import pytest

from compressor.measure.statistics import Estimate
from compressor.report import figures, summary
from compressor.report.charts import Mark, intervals, scatter
from compressor.report.html import _columns, render
from compressor.report.svg import LETTER, LINE, Axis, wrapped

LONG = "gptq:group_size=64,symmetric=false,damping=0.01,actorder=true,iterations=200"


def texts(drawing):
    return re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", drawing)


@pytest.mark.parametrize(("low", "high"), [(1.4472, 1.4531), (0, 0.00101), (95.9, 100.2), (180, 2260), (1e-9, 4e-9)])
@pytest.mark.parametrize("about", [3, 4, 8])
def test_no_tick_is_written_twice(low, high, about):
    written = [said for _, said in Axis.over([low, high], 0, 300).ticks(about)]
    assert len(set(written)) == len(written) >= 2
    assert not any("e" in one for one in written)


def test_names_are_wrapped_and_never_cut():
    for room in (60, 100, 152):
        lines = wrapped(LONG, room)
        assert "".join(lines) == LONG
        assert all(len(one) * LETTER <= room + LETTER for one in lines)
    mark = Mark(LONG, "step", Estimate(1.0, 0.1), Estimate(2.0, None))
    for drawing in (intervals("t", [mark, mark]), scatter("t", [mark, mark], ("x", "y"))):
        assert "…" not in drawing
        assert "".join(texts(drawing)).count(LONG) == 2


def test_labels_of_equal_values_do_not_lie_on_each_other():
    marks = [Mark(f"{LONG}-{number}", "step", Estimate(0.0, 0.1), Estimate(1.0, None)) for number in range(9)]
    drawing = scatter("t", marks, ("x", "y"))
    label_lines = re.findall(r'<tspan x="[\d.]+" y="([\d.-]+)"', drawing)
    heights = sorted(float(y) for y in label_lines)
    assert all(below - above >= LINE - 0.1 for above, below in pairwise(heights))


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (8, 2), (9, 3)])
def test_no_row_of_charts_is_nearly_empty(count, columns):
    found = _columns([None] * count)
    assert found == columns
    assert -count % found <= 1


def test_no_two_charts_of_a_page_have_one_title(make_run):
    ledger = make_run()
    ledger.steps[1].latency *= 1
    titles = re.findall(r"<figure>\s*<h3>([^<]+)</h3>", render(ledger))
    assert len(set(titles)) == len(titles) > 5


def test_the_time_per_token_is_one_number_on_a_page(make_run):
    ledger = make_run()
    (chart,) = [one for one in figures.latencies(ledger) if one.title.startswith("Time per token, onnx")]
    last = ledger.steps[-1].latency[0]
    assert f"{last.per_token_ms['p50']:.1f} ms" in texts(chart.drawing)
    assert last.per_token_ms["p50"] == sorted(last.repeats["itl_ms"])[1]


def test_bits_a_weight_are_told_of_their_parts(make_run):
    ledger = make_run()
    ledger.steps[1].bits_of = {"decoder layers": 4.25, "embedding and head": 16.0}
    (card,) = [one for one in summary.cards(ledger) if one.title == "Size"]
    assert card.detail.endswith("bits a weight (4.2 in decoder layers, 16.0 in embedding and head)")


def test_empty_lines_are_no_sample(make_run):
    ledger = make_run()
    for row in ledger.steps:
        row.continuations = [type(one)("\n\n \n", one.text) for one in row.continuations]
    assert summary.side_by_side(ledger) == []
