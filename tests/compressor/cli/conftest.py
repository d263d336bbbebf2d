"""Fixtures for tests of the command line: a text, options that keep a run short, and a run by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = "\n".join(f"The {a} sees the {b} near the old mill, and number {n} is called." for n in range(40)
                 for a, b in (("fox", "hen"), ("boy", "sea"), ("sun", "moon")))  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file of 120 lines."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def workload(text: Path) -> list[Any]:
    """Options that keep a run short."""
    return ["--calibration", text, "--samples", 8, "--length", 64, "--eval", text, "--eval-length", 64,
            "--allow-same-text", "--prompt", 8, "--output-tokens", 4]  # fmt: skip


@pytest.fixture
def compress(llmc: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """`compress(model, out, *words, target="hf", spec="gptq:group_size=32")`: the verb, with one pass."""

    def run(model: Path, out: Path, *words: Any, target: str = "hf", spec: str = "gptq:group_size=32") -> Any:
        return llmc("compress", model, "-t", target, "--pass", spec, "-o", out, *words)

    return run
