from __future__ import annotations

from pathlib import Path
from typing import Any

import low_rank
import pytest

TEXT = "".join(f"Line {number} of a text that is long enough.\n" for number in range(200))


@pytest.fixture
def found(tiny_model: Any, tmp_path: Path) -> Any:
    """Run the benchmark on a tiny model with these rows; the cells of its tables by the row's name."""

    root, text = tiny_model("llama"), tmp_path / "text.txt"
    text.write_text(TEXT)

    def run(*rows: str) -> dict[str, list[list[str]]]:
        words = ["--model", root, "--calibration", text, "--evaluation", text, "--out", tmp_path / "out"]
        words += [
            "--samples",
            4,
            "--windows",
            2,
            "--length",
            32,
            "--results",
            tmp_path / "low_rank.md",
            "--rows",
            *rows,
        ]
        assert low_rank.main([str(word) for word in [*words, "--rows", *rows]]) == 0
        lines = [line for line in (tmp_path / "low_rank.md").read_text().splitlines() if line.startswith("|")]
        cells: dict[str, list[list[str]]] = {}
        for line in lines:
            name, *others = (cell.strip() for cell in line.strip("|").split("|"))
            cells.setdefault(name, []).append(others)
        return cells

    return run


def test_rows_are_judged_compared_and_timed(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "ROUNDS", 2)
    monkeypatch.setattr(low_rank, "TOKENS", 2)
    cells = found("low-rank", "rtn", "rtn + r8")
    quality, speed = cells["rtn + r8"]
    assert quality[6] == "rtn" and quality[7].startswith("-"), "factors take a part of the rounding error away"
    assert float(quality[1]) > float(cells["rtn"][0][1]) > 4, "factors are bits too"
    assert "±" in speed[1]
    assert cells["rtn"][1][1] == "1.00 ± 0.00"


def test_rows_of_an_earlier_run_stay(found: Any) -> None:
    found("plain SVD")
    cells = found("as SVD-LLM")
    assert cells["as SVD-LLM"][0][6] == "plain SVD"
