from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runtime_rows
from peer import BENCHMARKS
from runtime_profile import profile
from runtime_report import document
from runtime_rows import BUILDER, LLAMA_CPP, MODELS, OURS, ROWS, Row, weight_bytes

from compressor.checkpoint import Checkpoint
from compressor.pass_ import PassContext
from compressor.registry import make_pass, make_target, parse_spec

QUALITY = {key: {"value": 0.5, "stderr": 0.1} for key in ("kl", "perplexity", "top1")}
FACTS = {
    "environment": {"cpu": "A CPU", "cores": 2, "memory_bytes": 2**34, "packages": {"onnxruntime": "1.31.1"}},
    "remark": "Nothing else ran.",
    "windows": 8,
}


@pytest.fixture
def artifact(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny model in int4 with an int8 table, which its head is tied to."""
    checkpoint = Checkpoint.open(tiny_model("llama"))
    for number, spec in enumerate(("rtn:group_size=32", "embeddings:group_size=32")):
        context = PassContext(tmp_path / str(number), {}, None, 0, lambda *_: None, [])
        checkpoint = make_pass(*parse_spec(spec)).apply(checkpoint, context)
    out = tmp_path / "artifact"
    out.mkdir()
    make_target("onnx-int4", {}).lower(checkpoint, out, lambda *_: None)
    return out


def test_a_token_reads_the_codes_and_scales_of_all_linears_and_the_head(artifact: Path) -> None:
    architecture = Checkpoint.open(artifact.parent / "1").architecture
    shapes = architecture.linears() | {"lm_head": (architecture.vocab_size, architecture.hidden_size)}
    bits = {name: 8 if name == "lm_head" else 4 for name in shapes}
    expected = sum(
        rows * columns * bits[name] // 8 + rows * columns // 32 * 4 for name, (rows, columns) in shapes.items()
    )
    assert weight_bytes(MODELS["llmc-channel"], artifact) == expected


def test_a_profile_knows_body_and_head(artifact: Path) -> None:
    found = profile(artifact, 4)
    for what in ("prompt", "token"):
        assert {"MatMulNBits of the body", "MatMulNBits of the head", "GroupQueryAttention"} <= set(found[what])
        assert all(value >= 0 for value in found[what].values())


def test_turns_are_taken_when_they_are_asked_for(artifact: Path) -> None:
    command = Row(MODELS["llmc-channel"], "onnxruntime").command(artifact, 1, "[1, 2, 3]", 5, "perf_counter")
    done = subprocess.run(command, input="\n\n", capture_output=True, text=True, check=True, cwd=BENCHMARKS)
    ready, *turns = done.stdout.splitlines()
    assert ready == "ready"
    assert [len(json.loads(turn)["others"]) for turn in turns] == [5, 5]
    assert command[0] == sys.executable


def times(**seconds: float) -> dict[str, Any]:
    """Rounds in which every row takes the same, but those whose engine or model is named."""
    rows = {row.name: [seconds.get(row.model.name, 0.01)] * 3 for row in ROWS}
    peaks = dict.fromkeys(rows, 2**28)
    return {
        "prompt": 128,
        "steps": 4,
        "clock": "perf_counter",
        "first": rows,
        "token": rows,
        "peak_bytes": peaks,
        "bandwidth": [1e10, 1e10],
    }


def test_bars_hold_or_are_missed() -> None:
    quality, sizes = dict.fromkeys(MODELS, QUALITY), dict.fromkeys(MODELS, 50_000_000)
    profiles = {"llmc-channel": {"token": {"MatMulNBits": 3.0}, "prompt": {"MatMulNBits": 90.0}}}
    text = document(FACTS, {1: times(genai=0.014)}, quality, profiles, sizes)
    bars = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert "1.40 (1.40 to 1.40) holds" in bars[0]  # a token, at least 1.15
    assert "1.40 (1.40 to 1.40) MISSED" in bars[1]  # a prompt, at least 1.5
    assert "1.00 (1.00 to 1.00) holds" in bars[2]  # llama.cpp
    assert "1.00 × holds" in bars[3]  # memory
    assert f"| {OURS.model.name} | onnxruntime-genai, huge pages | int8 | 10.00 |" in text
    assert "| 50% | 256 | 0.500 |" in text
    assert "## One thread" in text
    assert "A CPU, 2 cores, 16 GiB" in text


def test_rows_start_in_environments_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_rows.Peer, "command", lambda self, *arguments: [self.environment, *map(str, arguments)])
    assert BUILDER.command(Path("a"), 1)[0] == ".venv-genai"
    assert LLAMA_CPP.command(Path("a"), 1)[0] == ".venv-llama-cpp-python"
    assert (BUILDER.environment, OURS.environment) == ({}, runtime_rows.HUGE_PAGES)
    assert len({row.name for row in ROWS}) == len(ROWS)
