"""Runs a GGUF file in llama.cpp; started by `llama_cpp_session` in the environment that has xllamacpp or
llama-cpp-python.

Reads a request a line on standard input, as JSON: {"do": "logits", "tokens": [...]}, {"do": "prefill", "prompts":
[[...], ...], "limit": n or null} or {"do": "decode", "token": n}. Answers with lines of JSON, each followed by as
many bytes as it says.
Ends with its input. Imports nothing of llmc, which is not in that environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

try:
    import xllamacpp_library as lib
except ImportError:
    import llama_cpp as lib

BATCH = 512  # tokens processed at a time
ROW_BYTES = 16 << 20  # of logits made at a time
UNIT = 256  # a context's length is a multiple of this
CACHES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}


class Model:
    """One file, and the context of the sequences that run now.

    Args:
        length: tokens of the longest sequence.
        cache: one of `CACHES`.
    """

    def __init__(self, path: str, length: int, cache: str) -> None:
        lib.llama_backend_init()
        self._length, self._cache = length, cache
        self._model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"Error: llama.cpp does not load {path}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._context: Any = None
        self._rows = self._room = self._position = 0

    def logits(self, tokens: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """First position and float32 [positions, vocabulary], for all of one sequence."""
        self._restart(1, len(tokens))
        size = max(1, min(BATCH, ROW_BYTES // (4 * self.vocabulary)))
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            self._process([(0, start + place, token, True) for place, token in enumerate(part)])
            yield start, np.stack([self._row(place) for place in range(len(part))])

    def prefill(self, prompts: list[list[int]], limit: int | None) -> int:
        """The most likely token after the first of some prompts of equal length, behind which `limit` may come."""
        self._restart(len(prompts), self._length if limit is None else len(prompts[0]) + limit)
        self._position = len(prompts[0])
        last = self._position - 1
        # The first prompt comes last, so that its logits are in the last batch.
        entries = [
            (row, place, token, place == last and row == 0)
            for row in reversed(range(len(prompts)))
            for place, token in enumerate(prompts[row])
        ]
        for start in range(0, len(entries), BATCH):
            self._process(entries[start : start + BATCH])
        return int(self._row(-1).argmax())

    def decode(self, token: int) -> int:
        """The most likely token after `token`, which every sequence goes on with."""
        self._process([(row, self._position, token, row == 0) for row in range(self._rows)])
        self._position += 1
        return int(self._row(0).argmax())

    def _restart(self, rows: int, length: int) -> None:
        """Forget what was, and see that there is room for so many sequences of so many tokens."""
        if rows == self._rows and length <= self._room:
            lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            lib.llama_free(self._context)
        room = -(-length // UNIT) * UNIT
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = rows * room, rows
        settings.n_batch = settings.n_ubatch = BATCH
        settings.type_k = settings.type_v = CACHES[self._cache]
        if self._cache != "f16":  # values are quantized in fused attention only
            settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
        self._context, self._rows, self._room = lib.llama_init_from_model(self._model, settings), rows, room
        if not self._context:
            raise SystemExit(f"Error: llama.cpp makes no context of {rows} x {room} tokens")

    def _process(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Run (sequence, position, token, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (row, place, token, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index], batch.logits[index] = token, place, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
        code = lib.llama_decode(self._context, batch)
        if code:
            raise SystemExit(f"Error: llama_decode gave {code}")

    def _row(self, index: int) -> np.ndarray:
        found = lib.llama_get_logits_ith(self._context, index)
        address = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, (self.vocabulary,)).copy()


def answers(model: Model, request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What a request is answered with: lines, and the bytes behind each."""
    if request["do"] == "logits":
        for start, rows in model.logits(request["tokens"]):
            yield {"start": start, "shape": rows.shape}, rows.tobytes()
        yield {"done": True}, b""
    elif request["do"] == "prefill":
        yield {"token": model.prefill(request["prompts"], request["limit"])}, b""
    else:
        yield {"token": model.decode(request["token"])}, b""


def serve(model: Model, requests: Iterable[str], out: BinaryIO) -> None:
    """Answer one request after the other."""
    for line in requests:
        for head, content in answers(model, json.loads(line)):
            out.write(json.dumps({**head, "bytes": len(content)}).encode() + b"\n" + content)
            out.flush()


def main() -> None:
    """FILE LENGTH CACHE on the command line."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints shall not be taken for an answer
    model = Model(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    out.write(json.dumps({"vocabulary": model.vocabulary, "bytes": 0}).encode() + b"\n")
    out.flush()
    serve(model, sys.stdin, out)


if __name__ == "__main__":
    main()
