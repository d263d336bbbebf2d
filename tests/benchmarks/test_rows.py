from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rows
import torch
from judging import Judge, linear_bits

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError

TOKENS = torch.arange(64).view(2, 32)


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> rows.Bench:
    return rows.Bench.open(tmp_path / "bench", model, TOKENS, threads=1)


def calls(model: Path) -> list[str]:
    return model.with_name("calls").read_text().split()


def test_a_finished_row_is_kept_and_not_run_again(bench: rows.Bench, copying_row: Any, model: Path) -> None:
    row = copying_row("copy")
    assert bench.run_all([row], again=False) == {}
    result = bench.result(row)
    assert result is not None
    assert result.cost.import_s > 0 < result.cost.peak_rss_bytes
    assert result.packages.startswith("numpy ")
    assert (bench.folder(row) / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    bench.run_all([row], again=False)
    assert calls(model) == ["copy"]
    bench.run_all([row], again=True)
    assert calls(model) == ["copy"] * 2


def test_other_options_are_another_row(bench: rows.Bench, copying_row: Any, model: Path) -> None:
    bench.run_all([copying_row("copy")], again=False)
    changed = copying_row("copy", light=True)
    assert bench.result(changed) is None
    bench.run_all([changed], again=False)
    assert calls(model) == ["copy"] * 2


def test_a_row_that_breaks_leaves_nothing_and_the_next_one_runs(bench: rows.Bench, copying_row: Any) -> None:
    broken, sound = copying_row("broken", breaks=True), copying_row("sound")
    problems = bench.run_all([broken, sound], again=False)
    assert "it broke" in str(problems["broken"])
    assert isinstance(problems["broken"], RunError)
    assert bench.result(sound) is not None
    assert sorted(path.name for path in (bench.out / "rows").iterdir()) == [
        "broken.log", "sound", "sound.json", "sound.log",
    ]  # fmt: skip


def test_a_broken_second_attempt_leaves_the_first(
    bench: rows.Bench, copying_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = copying_row("copy")
    bench.run_all([row], again=False)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.run_all([row], again=True)
    assert bench.result(row) is not None


def test_a_pass_that_does_not_exist_is_told_and_nothing_is_run(bench: rows.Bench, copying_row: Any) -> None:
    problems = bench.run_all([copying_row("ours", passes=["gptqq:bits=4"])], again=False)
    assert isinstance(problems["ours"], InputError)
    assert "gptqq" in str(problems["ours"])


def test_rows_of_other_tokens_are_not_mixed(bench: rows.Bench, model: Path) -> None:
    rows.Bench.open(bench.out, model, TOKENS, threads=1)
    with pytest.raises(InputError, match="other tokens"):
        rows.Bench.open(bench.out, model, TOKENS + 1, threads=1)


def test_turns_alternate_and_leave_what_the_last_one_made(bench: rows.Bench, copying_row: Any, model: Path) -> None:
    first, second = copying_row("first"), copying_row("second")
    bench.time_in_turns([first, second], rounds=2)
    assert calls(model) == ["first", "second"] * 2
    (turns,) = rows.all_turns(bench.out)
    assert {name: len(costs) for name, costs in turns.costs.items()} == {"first": 2, "second": 2}
    result = bench.result(first)
    assert result is not None
    assert result.cost == turns.costs["first"][-1]


def test_the_same_weights_do_not_diverge(bench: rows.Bench, copying_row: Any, model: Path) -> None:
    row = copying_row("copy")
    bench.run_all([row], again=False)
    for _ in range(2):  # the second time, the original's states are read from disk
        judge = Judge.of(model, TOKENS, bench.out / "reference")
        judge.judge(bench, row)
    result = bench.result(row)
    assert result is not None
    assert result.judgement is not None
    windows = torch.tensor(result.judgement.windows)
    assert windows.shape == (2, 4)
    assert torch.allclose(windows[:, 2], torch.zeros(2), atol=1e-6)
    assert torch.equal(windows[:, 0], windows[:, 1])
    assert result.judgement.bits == 32


def test_a_folder_that_cannot_be_read_is_told(bench: rows.Bench, copying_row: Any, model: Path) -> None:
    row = copying_row("copy")
    bench.run_all([row], again=False)
    (bench.folder(row) / "config.json").unlink()
    Judge.of(model, TOKENS, bench.out / "reference").judge(bench, row)
    result = bench.result(row)
    assert result is not None
    assert result.judgement is not None
    assert "config.json" in (result.judgement.problem or "")


def test_bits_count_scales_and_leave_the_head_out(tmp_path: Path, model: Path) -> None:
    from compressor.pass_ import PassContext
    from passes.rtn import RTN

    context = PassContext(tmp_path / "step", {}, None, 0, lambda *_: None, [])
    step = RTN(group_size=64).apply(Checkpoint.open(model), context)
    assert linear_bits(step) == 4.25
