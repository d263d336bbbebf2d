"""The page of a run, as a document; what a browser makes of it is in test_browser.py."""

import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from compressor.gate.decide import load_decision
from compressor.ledger import SamplesRecord, StepRecord, TaskRecord
from compressor.measure.accuracy import Quality
from compressor.measure.layers import LayerError
from compressor.measure.statistics import Estimate
from compressor.report import figures, summary, training
from compressor.report.charts import Mark
from compressor.report.files import render_html, render_markdown, write_reports
from compressor.report.html import render


class Page(HTMLParser):
    """Tags with their attributes, and whether all that have to be closed are."""

    VOID = ("meta", "link", "br", "wbr", "!doctype")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_a_page_needs_nothing_but_itself(make_run, decision):
    text = render(make_run(), decision)
    page = Page(text)
    assert not page.open
    assert not page.all("script")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            assert not attributes.get(name) or attributes[name].startswith(("#", "data:,"))
    assert "url(" not in text
    assert "@import" not in text


def test_every_section_is_there_and_can_be_reached(make_run, decision):
    page = Page(render(make_run(), decision))
    anchors = [attributes["href"][1:] for attributes in page.all("a")]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert set(anchors) <= ids
    for wanted in (
        "steps",
        "accuracy",
        "trade",
        "gate",
        "latency",
        "layers",
        "training",
        "text",
        "calibration",
        "tables",
        "remarks",
        "again",
    ):
        assert wanted in anchors


def test_those_who_do_not_see_charts_are_told_what_they_say(make_run):
    for attributes in Page(render(make_run())).all("svg"):
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20


def test_text_of_models_and_users_cannot_become_markup(make_run):
    text = render(make_run())
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "Once upon &lt;b&gt;a time" in text
    assert "there was a fox &amp; a hen" in text


def test_the_gates_verdict_is_on_both_reports(run_folder):
    folder = run_folder()
    write_reports(folder)
    page, plain = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "Gate: FAIL" in page
    assert "llmc gate: FAIL" in plain
    assert "perplexity 10% worse, 2% allowed" in page
    assert "perplexity 10% worse, 2% allowed" in plain


def test_a_run_without_a_gate_says_nothing_of_one(run_folder):
    folder = run_folder(judged=False)
    assert "Gate" not in render_html(folder)
    assert "gate" not in render_markdown(folder)


def test_a_decision_is_read_as_it_was_kept(decision, tmp_path):
    decision.save(tmp_path)
    assert load_decision(tmp_path) == decision


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_a_run_that_broke_off_has_a_page_too(make_run, kept):
    ledger = make_run()
    ledger.steps, ledger.artifact = ledger.steps[:kept], None
    assert "the run did not get as far" in render(ledger)


def test_rows_without_numbers_are_no_marks(make_run):
    ledger = make_run()
    ledger.steps[1].quality = None
    ledger.steps[3].latency = []
    page = render(ledger)
    assert "nan" not in Page(page).text
    assert not re.search(r'="(nan|inf|-inf)', page)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_left_out(make_run, odd):
    """As in the row of an artifact whose activations were beyond float16."""
    ledger = make_run()
    none = Estimate(odd, odd)
    ledger.steps[3].quality = Quality(none, none, none, Estimate(0.0, odd))
    ledger.steps[1].layers[3] = LayerError(3, odd, odd)
    page = render(ledger)
    assert not re.search(r'="-?(nan|inf)', page)
    assert not re.search(r"\b(nan|inf),", page)
    assert ("not a number" if math.isnan(odd) else "∞") in page
    assert "its perplexity is no number" in page


def test_a_pass_that_trained_has_a_curve(make_run):
    (figure,) = training.losses(make_run())
    assert figure.title.startswith("Training loss, gptq")
    drawing = Page(figure.drawing)
    (label,) = [attributes["aria-label"] for attributes in drawing.all("svg")]
    assert "500 steps; loss 2.2 at first, 0.654 over the last tenth" in label
    thin, strong = [attributes["points"].split() for attributes in drawing.all("polyline")]
    assert len(thin) == training.POINTS
    assert len(strong) <= 2 * training.POINTS
    first, last = (float(point.partition(",")[2]) for point in (strong[0], strong[-1]))
    assert first < last, "heights of an SVG grow downwards, and this loss falls"


def test_a_curve_leaves_out_what_is_no_number(make_run):
    ledger = make_run()
    ledger.steps[1].losses = [3.0, float("nan"), 2.0, float("inf")]
    (figure,) = training.losses(ledger)
    assert "2 are no finite numbers" in figure.drawing
    assert not re.search(r"(nan|inf)[,\" ]", figure.drawing)
    ledger.steps[1].losses = [float("nan")] * 3
    assert "No loss is a finite number" in training.losses(ledger)[0].drawing
    ledger.steps[1].losses = []
    assert "Training" not in render(ledger)


@dataclass
class Energy:
    name: str
    joules: Estimate


@dataclass
class NewerRow(StepRecord):
    energies: list[Energy] = field(default_factory=list)


def task(name, **metrics):
    found = {metric: Estimate(value, 0.01) for metric, value in metrics.items()}
    return TaskRecord(name, "classification", "d", "r", found, list(found), SamplesRecord("s.parquet", "0", 9))


def test_metrics_are_found_by_their_type_so_that_new_ones_are_shown():
    row = NewerRow("gptq", tasks=[task("boolq", accuracy=0.7, f1=0.6)], energies=[Energy("idle", Estimate(3.0, None))])
    assert figures.metrics(row) == {
        "boolq accuracy": Estimate(0.7, 0.01),
        "boolq f1": Estimate(0.6, 0.01),
        "idle joules": Estimate(3.0, None),
    }


def test_tasks_have_a_chart_and_a_table(make_run):
    ledger = make_run()
    ledger.steps[0].tasks = [task("boolq", accuracy=0.75, f1=0.7)]
    ledger.steps[3].tasks = [task("boolq", accuracy=0.5)]
    page = "".join(Page(render(ledger)).text)
    assert "Task boolq, 9 samples" in page
    (card,) = [one for one in summary.cards(ledger) if one.title == "boolq, accuracy"]
    assert (card.value, card.error, card.detail) == ("50.0%", "1.0%", "of onnx-int4; original 75.0 ± 1.0%")
    assert "boolq accuracy, higher is better" in page
    assert "50.0 ± 1.0%" in page


def test_the_front_is_what_no_other_beats():
    marks = [Mark(name, "run1", Estimate(y, None), Estimate(x, None)) for name, x, y in
             [("a", 1, 5), ("b", 2, 3), ("c", 3, 4), ("d", 4, 1), ("e", 2, 3)]]  # fmt: skip
    assert [one.label for one in figures.pareto(marks, (True, True))] == ["a", "b", "e", "d"]
    assert [one.label for one in figures.pareto(marks, (False, True))] == ["d"]


def test_continuations_show_where_they_leave_the_originals(make_run):
    ((prompt, (first, second)),) = summary.side_by_side(make_run())
    assert prompt == "Once upon <b>a time</b>"
    assert (first.rows, first.same, first.other) == (["original"], "there was a fox & a hen", "")
    assert (second.same, second.other) == ("there was a ", "dog")
    assert len(second.rows) == 2


def test_what_is_to_blame_is_read_and_copied_as_it_is(make_run, decision, blamed):
    """Lines may end inside a name, and marks of code are code; what is no markup stays none."""
    page = render(make_run(), decision, blamed)
    assert "by <code>llmc gate</code>, not by &lt;i&gt;this&lt;/i&gt;." in page
    assert blamed["repair"] in page.replace("<wbr>", "")
    assert '<td class="good">PASS</td>' in page
    assert "model.<wbr>layers.<wbr>17." in page
