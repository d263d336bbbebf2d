from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import distillation
import numpy as np
import pytest

NOISE = np.random.default_rng(0).normal(scale=0.05, size=24)


def windows(loss: float, kl: float) -> np.ndarray:
    original = 3.0 + NOISE
    return np.stack([original, original + loss, np.full(24, kl) + NOISE / 100, np.full(24, 0.8)], axis=1)


@pytest.fixture
def kept(tmp_path: Any) -> Any:
    """A folder as the benchmark keeps it, of these rows: name to what each step left, (loss, KL)."""

    def make(**rows: list[tuple[float, float]]) -> distillation._Model:
        (tmp_path / distillation.ABOUT).write_text(json.dumps({"key": "k", "evaluation": "24 windows"}))
        for row in distillation.ROWS:
            if row.name in rows:
                steps = {
                    one: {"windows": windows(*left).tolist()}
                    for one, left in zip(row.passes, rows[row.name], strict=True)
                }
                found = {"key": "k", "steps": steps, "run": "today", "text": "text",
                         "cost": {"cpu_s": 60.0, "wall_s": 90.0, "peak_rss_bytes": 1 << 30}}  # fmt: skip
                (tmp_path / f"{row.slug}.json").write_text(json.dumps(found))
        return distillation._Model(tmp_path)

    return make


def test_what_comes_back_is_counted_in_perplexity() -> None:
    found = distillation.recovered(windows(1.0, 0.1), windows(0.5, 0.1))
    assert found.value == pytest.approx((np.e - np.exp(0.5)) / (np.e - 1))
    assert found.stderr == pytest.approx(0, abs=1e-9), "what all windows share has no error"


def test_bars(kept: Any) -> None:
    bars = list(
        distillation._bars(
            kept(depth=[(1.0, 0.5), (0.2, 0.2)], gptq=[(0.1, 0.09)], tune=[(0.1, 0.08)], qat=[(0.1, 0.07)])
        )
    )
    assert [holds for _, _, holds in bars] == [True, True, True]
    assert bars[1][:2] == ("depth: within 1800 CPU seconds", "60")
    assert bars[2][0].endswith("tune")
    bars = list(distillation._bars(kept(depth=[(1.0, 0.5), (0.6, 0.2)], qat=[(0.1, 0.085)])))
    assert [holds for _, _, holds in bars] == [False, True, False]


def test_the_section_has_a_line_a_step(kept: Any) -> None:
    text = distillation._section(kept(depth=[(1.0, 0.5), (0.2, 0.2)], gptq=[(0.1, 0.09)]))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 5
    assert lines[3].endswith("| 60 | 90 | 1024 |"), "costs are those of the row, beside its last step"
    assert "holds" in text


def test_a_row_goes_on_from_the_step_of_another(tmp_path: Path) -> None:
    row = next(row for row in distillation.ROWS if row.start == "tune light")
    for step in ("00-import", "01-tune"):
        (tmp_path / "tune-light" / "steps" / step).mkdir(parents=True)
    arguments = argparse.Namespace(model="m", calibration="t", samples=1, length=8)
    words = row.words(arguments, tmp_path / row.slug)
    place = tmp_path / "tune-light" / "steps" / "01-tune"
    assert words[words.index("--pass") + 1] == f"qat:group_size=64,start={place}"
    assert distillation.STARTED.sub(r"\1\2", f"qat:start={place},epochs=1.0") == "qat:start=tune-light,epochs=1.0"
