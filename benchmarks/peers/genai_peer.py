"""onnxruntime-genai: its model builder, and models of anybody driven by it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import turns

if TYPE_CHECKING:
    import numpy as np


class Engine:
    """A folder with genai_config.json, on the CPU; the key-value cache is one buffer, as genai has it by default."""

    def __init__(self, artifact: Path, threads: int, length: int) -> None:
        import onnxruntime_genai

        self._genai, self._length = onnxruntime_genai, length
        config = onnxruntime_genai.Config(str(artifact))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._generator = None

    def start(self, prompt: list[int]) -> None:
        parameters = self._genai.GeneratorParams(self._model)
        # A minimum as well, since no turn may end early.
        parameters.set_search_options(do_sample=False, max_length=self._length, min_length=self._length)
        self._generator = self._genai.Generator(self._model, parameters)
        self._generator.append_tokens(prompt)
        self._generator.generate_next_token()

    def step(self) -> None:
        self._generator.generate_next_token()


def build(model: Path, out: Path, options: list[str]) -> None:
    """Run the model builder at int4 for the CPU; `options` are its `--extra_options`."""
    with tempfile.TemporaryDirectory() as cache:
        words = ["-i", model, "-o", out, "-p", "int4", "-e", "cpu", "-c", cache]
        extra = ["--extra_options", *options] if options else []
        subprocess.run([sys.executable, "-P", "-m", "onnxruntime_genai.models.builder", *words, *extra], check=True)


def judge(artifact: Path, length: int) -> turns.Judge:
    """What gives the logits of every position of a text."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact / "model.onnx"), providers=["CPUExecutionProvider"])
    config = json.loads((artifact / "genai_config.json").read_text())["model"]["decoder"]
    shape = (1, config["num_key_value_heads"], 0, config["head_size"])
    cache = {
        entry.name: np.zeros(shape, np.float32)
        for entry in session.get_inputs()
        if entry.name.startswith("past_key_values.")
    }

    def logits(window: np.ndarray) -> np.ndarray:
        text = window[None]
        (found,) = session.run(["logits"], {"input_ids": text, "attention_mask": np.ones_like(text), **cache})
        return found[0]

    return logits


def add_build(verbs: Any) -> None:
    building = verbs.add_parser("build")
    building.add_argument("model", type=Path)
    building.add_argument("out", type=Path)
    building.add_argument("options", nargs="*")
    building.set_defaults(run=lambda given: build(given.model, given.out, given.options))


if __name__ == "__main__":
    turns.main(Engine, judge, add_build)
