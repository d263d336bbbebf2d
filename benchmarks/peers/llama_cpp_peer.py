"""llama.cpp through llama-cpp-python: its quantizer, and GGUF files run by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import turns

if TYPE_CHECKING:
    import numpy as np


class Engine:
    """A GGUF file."""

    def __init__(self, artifact: Path, threads: int, length: int) -> None:
        from llama_cpp import Llama

        self._model = Llama(
            str(artifact), n_ctx=length, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self._token = 0

    def start(self, prompt: list[int]) -> None:
        self._model.reset()
        self._read(prompt)

    def step(self) -> None:
        self._read([self._token])

    def _read(self, tokens: list[int]) -> None:
        import numpy as np
        from llama_cpp import llama_get_logits_ith

        self._model.eval(tokens)
        last = llama_get_logits_ith(self._model.ctx, -1)
        self._token = int(np.ctypeslib.as_array(last, (self._model.n_vocab(),)).argmax())


def quantize(source: Path, out: Path, pure: bool) -> None:
    """Make Q4_0 of a GGUF file; `pure` gives the embedding Q4_0 too, where llama.cpp's default has more bits for it."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.allow_requantize = True
    parameters.pure = pure
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters):
        raise SystemExit(f"llama.cpp could not quantize {source}.")


def judge(artifact: Path, length: int) -> turns.Judge:
    """What gives the logits of every position of a text of `length` tokens."""
    from llama_cpp import Llama

    model = Llama(str(artifact), n_ctx=length, n_batch=512, logits_all=True, verbose=False)

    def logits(window: np.ndarray) -> np.ndarray:
        model.reset()
        model.eval(window.tolist())
        return model.scores[: len(window)]

    return logits


def add_quantize(verbs: Any) -> None:
    quantizing = verbs.add_parser("quantize")
    quantizing.add_argument("source", type=Path)
    quantizing.add_argument("out", type=Path)
    quantizing.add_argument("--pure", action="store_true")
    quantizing.set_defaults(run=lambda given: quantize(given.source, given.out, given.pure))


if __name__ == "__main__":
    turns.main(Engine, judge, add_quantize)
