"""Which operators a prompt and a token spend their time in, by onnxruntime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

PROMPTS, TOKENS = 7, 40
KERNEL = "_kernel_time"


def profile(artifact: Path, prompt: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one thread in each kind of node, for "prompt" and for "token".

    Of each node the fastest run counts: whatever else the machine does makes runs slower only.
    """
    return {"prompt": _profiled(artifact, prompt, PROMPTS, 0), "token": _profiled(artifact, prompt, 1, TOKENS)}


def _profiled(artifact: Path, prompt: int, prompts: int, tokens: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(str(artifact / "model.onnx"), options, ["CPUExecutionProvider"])
        for _ in range(prompts):
            cache = _run(session, np.full((1, prompt), 1000), prompt, _empty_cache(session, artifact))
        for number in range(tokens):
            cache = _run(session, np.full((1, 1), 1000), prompt + number + 1, cache)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _by_kind(events, prompts if tokens else 0)


def _by_kind(events: list[dict[str, Any]], skipped: int) -> dict[str, float]:
    """Sums over nodes of their fastest run, the first `skipped` runs of each left out."""
    runs = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            runs[event["name"].removesuffix(KERNEL), event["args"]["op_name"]].append(event["dur"])
    sums: dict[str, float] = defaultdict(float)
    for (node, operator), durations in runs.items():
        sums[_kind(node, operator)] += min(durations[skipped:]) / 1e3
    return dict(sums)


def _kind(node: str, operator: str) -> str:
    if operator not in ("MatMulNBits", "FusedMatMul", "MatMul"):
        return operator
    return f"{operator} of the body" if "layers" in node else f"{operator} of the head"


def _run(session: Any, tokens: np.ndarray, total: int, cache: dict[str, Any]) -> dict[str, Any]:
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    feeds = {"input_ids": value(tokens.astype(np.int64)), "attention_mask": value(np.ones((1, total), np.int64))}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run_with_ort_values(names, feeds | cache), strict=True))
    return {name: found[name.replace("past_key_values", "present")] for name in cache}


def _empty_cache(session: Any, artifact: Path) -> dict[str, Any]:
    config = json.loads((artifact / "genai_config.json").read_text())["model"]["decoder"]
    shape = (1, config["num_key_value_heads"], 0, config["head_size"])
    names = [entry.name for entry in session.get_inputs() if entry.name.startswith("past_key_values.")]
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for name in names}
