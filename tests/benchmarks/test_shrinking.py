from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shrinking
import shrinking_report
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.pass_ import PassContext
from passes.magnitude import Magnitude

TEXT = "".join(f"Line {number} of a text that is long enough.\n" for number in range(200))


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Any) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    options = {
        "model": tiny_model("llama"), "calibration": text, "evaluation": text, "out": tmp_path / "out",
        "results": tmp_path / "results.md", "samples": 4, "length": 32, "windows": 3, "window-length": 32,
        "threads": 1,
    }  # fmt: skip
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def test_a_row_is_what_the_pass_makes_and_says_its_zeros(asked: list[str], tmp_path: Path) -> None:
    assert shrinking.main([*asked, "--rows", "magnitude"]) == 0
    root, row = Path(asked[1]), Checkpoint.open(tmp_path / "out" / "rows" / "magnitude")
    step = Magnitude().apply(Checkpoint.open(root), PassContext(tmp_path / "step", {}, None, 0, lambda *_: None, []))
    for block in step.blocks():
        for name, weight in row.block(block.name).weights.items():
            assert torch.equal(weight, block.weights[name]), name
    text = (tmp_path / "results.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| magnitude ")]
    assert "| 0.1 | 50.0% |" in line
    assert "not measured" in text


def test_rows_are_compared_with_their_rivals_window_by_window(
    asked: list[str], tmp_path: Path, copying_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [copying_row("wanda"), copying_row("llm-compressor wanda")]
    monkeypatch.setattr(shrinking, "ROWS", rows)
    monkeypatch.setattr(shrinking, "BARS", ("wanda",))
    monkeypatch.setattr(shrinking, "RIVALS", {"wanda": "llm-compressor wanda"})
    assert shrinking.main(asked) == 0
    text = (tmp_path / "results.md").read_text()
    assert "| llm-compressor wanda | 0% | 0 |" in text
    assert "| yes |" in text


def test_a_worse_row_fails_its_bar() -> None:
    noise = np.random.default_rng(0).normal(scale=0.01, size=24)

    class Found:
        """Two rows, the first 0.1 nats further from the original."""

        def windows(self, name: str) -> np.ndarray:
            kl = (0.3 if name == "one" else 0.2) + noise * (1 if name == "one" else 2)
            return np.stack([np.full(24, 3.0), 3.0 + kl, kl, np.full(24, 0.8)], axis=1)

        def paired(self, name: str, other: str) -> Any:
            return shrinking_report.mean(self.windows(name)[:, 2] - self.windows(other)[:, 2])

    assert shrinking_report._bar(Found(), "one", "other").holds is False  # type: ignore[arg-type]
    assert shrinking_report._bar(Found(), "other", "one").holds is True  # type: ignore[arg-type]


def test_rows_are_distinct_and_spelled_right() -> None:
    assert len({row.slug for row in shrinking.ROWS}) == len(shrinking.ROWS)
    names = {row.name for row in shrinking.ROWS}
    assert names >= {*shrinking.RIVALS, *shrinking.RIVALS.values(), *shrinking.BARS}
    for row in shrinking.ROWS:
        try:
            assert row.version()
        except InputError as error:
            pytest.fail(f"{row.name}: {error}")


def test_texts_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        shrinking.main(["--model", "somewhere"])
    assert "are needed" in capsys.readouterr().err
