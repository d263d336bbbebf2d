"""llama.cpp through llama-cpp-python: its quantizer, and GGUF files run by it."""

from __future__ import annotations

import argparse
from pathlib import Path

import turns


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


def logits(artifact: Path, tokens: Path, out: Path) -> None:
    """Logits of every position of int64 [windows, length], a float32 .npy file a window in the folder `out`."""
    import numpy as np
    from llama_cpp import Llama

    windows = np.load(tokens)
    model = Llama(str(artifact), n_ctx=windows.shape[1], n_batch=512, logits_all=True, verbose=False)
    for number, window in enumerate(windows):
        model.reset()
        model.eval(window.tolist())
        np.save(out / f"{number}.npy", model.scores[: len(window)])


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    turns.add_parser(verbs)
    quantizing = verbs.add_parser("quantize")
    quantizing.add_argument("source", type=Path)
    quantizing.add_argument("out", type=Path)
    quantizing.add_argument("--pure", action="store_true")
    judging = verbs.add_parser("logits")
    for name in ("artifact", "tokens", "out"):
        judging.add_argument(name, type=Path)
    given = parser.parse_args()
    if given.verb == "turns":
        turns.serve(given, Engine)
    elif given.verb == "quantize":
        quantize(given.source, given.out, given.pure)
    else:
        logits(given.artifact, given.tokens, given.out)


if __name__ == "__main__":
    main()
