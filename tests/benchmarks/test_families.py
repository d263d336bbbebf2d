"""The table of families in the docs is what the targets answer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.families import NAMES, answers, document
from compressor.families import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
LOCAL = ("`trtrtx-",)  # targets whose package only some machines have


def lines(text):
    return [line for line in text.splitlines() if line and not any(name in line for name in LOCAL)]


def test_the_table_is_what_the_targets_answer():
    written = lines(DOCUMENT.read_text())
    assert [line for line in lines(document()) if line not in written] == []
    rows = [line for line in written if line.startswith("| `") and line.endswith((" yes |", " no |"))]
    assert rows == [line for line in lines(document()) if line.startswith("| `")]


def test_every_family_has_a_column_and_every_first_family_every_target():
    assert set(NAMES) == set(FAMILIES)
    for name, row in answers().items():
        assert [family for family in ("llama", "mistral", "qwen2", "qwen3") if row[family]] == [], name
