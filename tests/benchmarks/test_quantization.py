from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantization
import torch

from calibration.dataset import digest_tokens
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from compressor.recipe import make_recipe
from compressor.recipe_texts import RecipeTexts
from compressor.tokenizer import load_tokenizer
from passes.gptq import GPTQ


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Callable[..., Path]) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} of a text that is long enough.\n" for number in range(200)))
    return {
        "model": tiny_model("llama"), "calibration": text, "evaluation": text, "out": tmp_path / "out",
        "results": tmp_path / "results.md", "samples": 4, "length": 32, "windows": 2, "window-length": 32,
        "threads": 1,
    }  # fmt: skip


def words(asked: dict[str, Any], *rows: str) -> list[str]:
    return [*(part for key, value in asked.items() for part in (f"--{key}", str(value))), "--rows", *rows]


def test_a_row_of_ours_is_what_llmc_compress_makes(asked: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    assert quantization.main(words(asked, "gptq")) == 0
    section = {"texts": str(asked["calibration"]), "samples": 4, "length": 32}
    recipe = make_recipe({"model": "", "target": "hf", "calibration": section})
    tokens = RecipeTexts().calibration(recipe, load_tokenizer(asked["model"]))
    used = torch.from_numpy(np.load(asked["out"] / "tokens.npy"))
    assert digest_tokens(used) == tokens.digest

    context = PassContext(tmp_path / "step", {}, used, 0, lambda *_: None, [])
    step = GPTQ(group_size=64).apply(Checkpoint.open(asked["model"]), context)
    row = Checkpoint.open(asked["out"] / "rows" / "gptq")
    for block in step.blocks():
        for name, weight in row.block(block.name).weights.items():
            wanted = block.weights[name]
            same = weight.same_bits(wanted) if isinstance(weight, QuantizedWeight) else torch.equal(weight, wanted)
            assert same, name

    text = asked["results"].read_text()
    assert capsys.readouterr().out.startswith(text)
    (line,) = [line for line in text.splitlines() if line.startswith("| gptq ")]
    assert "| 4.250 |" in line
    assert "not measured" in text


def test_the_table_holds_what_earlier_runs_left_and_names_what_cannot_run(
    asked: dict[str, Any], copying_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [copying_row("copy"), copying_row("future", passes=["time-travel"]), copying_row("broken", breaks=True)]
    monkeypatch.setattr(quantization, "ROWS", rows)
    assert quantization.main(words(asked, "copy")) == 0
    assert quantization.main(words(asked, "future")) == 0
    text = asked["results"].read_text()
    assert "| copy |" in text
    assert "- future: Unknown pass 'time-travel'" in text
    assert "Without a result: future, broken." in text
    assert quantization.main(words(asked, "broken")) == 1


def test_turns_are_in_the_document(asked: dict[str, Any], copying_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "ROWS", [copying_row("first"), copying_row("second")])
    quantization.main([*words(asked, "first", "second"), "--rounds", "2"])
    assert "| second | 2 |" in asked["results"].read_text()


def test_depth_and_shape(tmp_path: Path, copying_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shapes.VOCABULARY", 64)
    monkeypatch.setattr(quantization, "ROWS", [copying_row("gptq")])
    monkeypatch.setattr(quantization, "SHAPES", {"1b": quantization.llama(1, 64)})
    out = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results.md"), "--threads", "1"]
    quantization.main(["--depth", "1", "--width", "64", *out])
    quantization.main(["--shape", "1b", *out])
    text = (tmp_path / "results.md").read_text()
    assert "## Random weights, depth 4-wide-64" in text
    assert "## Random weights, 1b" in text
    assert "gptq four times as deep: peak memory" in text


def test_an_unknown_row_is_refused(asked: dict[str, Any], capsys: Any) -> None:
    assert quantization.main(words(asked, "gptqq")) == 2
    assert "There is no row 'gptqq'." in capsys.readouterr().err


def test_every_row_that_names_a_known_pass_spells_it_right() -> None:
    for row in quantization.ROWS:
        try:
            assert row.version()
        except InputError as error:
            assert str(error).startswith("Unknown pass"), row.name


def test_rows_are_distinct() -> None:
    slugs = [row.slug for row in quantization.ROWS]
    assert len(slugs) == len(set(slugs))
