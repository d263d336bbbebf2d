"""onnxruntime-genai: its model builder, and models of anybody driven by it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import turns


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
        subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", *words, *extra], check=True)


def logits(artifact: Path, tokens: Path, out: Path) -> None:
    """Logits of every position of int64 [windows, length], a float32 .npy file a window in the folder `out`."""
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
    for number, window in enumerate(np.load(tokens)):
        text = window[None]
        (found,) = session.run(["logits"], {"input_ids": text, "attention_mask": np.ones_like(text), **cache})
        np.save(out / f"{number}.npy", found[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    turns.add_parser(verbs)
    building = verbs.add_parser("build")
    building.add_argument("model", type=Path)
    building.add_argument("out", type=Path)
    building.add_argument("options", nargs="*")
    judging = verbs.add_parser("logits")
    for name in ("artifact", "tokens", "out"):
        judging.add_argument(name, type=Path)
    given = parser.parse_args()
    if given.verb == "turns":
        turns.serve(given, Engine)
    elif given.verb == "build":
        build(given.model, given.out, given.options)
    else:
        logits(given.artifact, given.tokens, given.out)


if __name__ == "__main__":
    main()
