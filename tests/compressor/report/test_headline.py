"""One sentence that says what a run got; gains and losses alike."""

from dataclasses import replace

import pytest

from compressor.measure.statistics import Estimate
from compressor.report.files import render_html, render_markdown
from compressor.report.headline import headline


def test_it_tells_size_speed_and_quality(make_run):
    assert (
        headline(make_run())
        == "3.05 × smaller, 2.01 × the speed, perplexity 10.00 ± 0.40% higher; first token 2.01 × faster."
    )


def test_quality_within_noise_is_called_so(make_run):
    assert "perplexity within noise of the original's (+0.67 ± 0.40%)" in headline(make_run(perplexity=30.2))
    assert "perplexity within noise of the original's (-0.33 ± 0.40%)" in headline(make_run(perplexity=29.9))
    assert "perplexity 3.33 ± 0.40% lower" in headline(make_run(perplexity=29.0))


def test_a_slower_first_token_is_not_hidden_in_a_plot(make_run):
    ledger = make_run()
    last = ledger.steps[-1]
    times = {name: 10 * value for name, value in last.latency[0].ttft_ms.items()}
    last.latency = [replace(last.latency[0], ttft_ms=times)]
    assert headline(ledger).endswith("; first token 4.98 × slower.")


def test_a_larger_artifact_is_called_larger(make_run):
    assert headline(make_run(size=1038 << 20)).startswith("2 × larger, ")


def test_what_was_not_measured_is_said(make_run):
    ledger = make_run()
    ledger.steps[-1].latency, ledger.steps[-1].not_run = [], "TensorRT-LLM needs a GPU"
    assert headline(ledger).endswith("higher; not run here: TensorRT-LLM needs a GPU.")
    for row in ledger.steps:
        row.quality = None
    assert "quality not measured" in headline(ledger)
    ledger.artifact = None
    assert headline(ledger) == "No artifact was made: the run did not get as far."


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_perplexity_that_is_no_number_is_not_within_noise(make_run, odd):
    ledger = make_run()
    ledger.steps[-1].quality = replace(ledger.steps[-1].quality, perplexity_increase=Estimate(odd, odd))
    assert "within noise" not in headline(ledger)


def test_it_stands_on_both_reports(run_folder):
    folder = run_folder()
    assert "3.05 × smaller" in render_html(folder)
    assert "3.05 × smaller" in render_markdown(folder)
