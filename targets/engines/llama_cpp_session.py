"""A GGUF file in llama.cpp, which runs in a worker process of its own environment."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compressor.engine import Place
from compressor.errors import RunError
from targets.engines import LLAMA_CPP
from targets.engines.process import EngineProcess

WORKER = Path(__file__).with_name("llama_cpp_worker.py")
ANSWER_TIMEOUT_S = 600
PIECE = 1 << 20  # bytes read at a time


class LlamaCppSession:
    """Implements `compressor.target.Session`.

    Args:
        length: tokens of the longest text.
        cache: what keys and values are kept in, f16 or q8_0.

    Raises:
        RunError: llama.cpp does not load the file.
    """

    def __init__(self, file: Path, length: int, cache: str = "f16", place: Place | None = None) -> None:
        place = place or LLAMA_CPP.place()
        self.runtime = f"llama.cpp ({place.distribution} {place.version}) CPU"
        self.longest = length
        command = [str(place.python), str(WORKER), str(file), str(length), cache]
        self._process = EngineProcess("llama.cpp", command, {}, piped=True)
        self._buffer = b""
        try:
            self._vocabulary = self._answer()[0]["vocabulary"]
        except BaseException:
            self.close()
            raise

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        self._check(len(tokens))
        self._ask({"do": "logits", "tokens": tokens.tolist()})
        while "done" not in (found := self._answer())[0]:
            head, content = found
            yield head["start"], np.frombuffer(content, np.float32).reshape(head["shape"]).copy()

    def prefill(self, tokens: np.ndarray, limit: int | None = None) -> int:
        self._check(tokens.shape[1] + (limit or 1))
        self._ask({"do": "prefill", "prompts": tokens.tolist(), "limit": limit})
        return int(self._answer()[0]["token"])

    def decode(self, token: int) -> int:
        self._ask({"do": "decode", "token": token})
        return int(self._answer()[0]["token"])

    def close(self) -> None:
        self._process.close()

    def _check(self, length: int) -> None:
        if length > self.longest:
            raise RunError(f"llama.cpp has room for {self.longest} tokens here, and the text has {length}.")

    def _ask(self, request: dict[str, Any]) -> None:
        pipe = self._process.process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._process.death() from error

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        """The next line of the worker, and the bytes behind it."""
        limit = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._buffer:
            self._buffer += self._read(limit)
        line, _, rest = self._buffer.partition(b"\n")
        head = json.loads(line)
        content = bytearray(rest)
        while len(content) < head["bytes"]:
            content += self._read(limit)
        self._buffer = bytes(content[head["bytes"] :])
        return head, bytes(content[: head["bytes"]])

    def _read(self, limit: float) -> bytes:
        pipe = self._process.process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], max(0.0, limit - time.monotonic()))[0]:
            raise self._process.failure(f"did not answer in {ANSWER_TIMEOUT_S} s")
        found = pipe.read1(PIECE)  # type: ignore[attr-defined]
        if not found:
            raise self._process.death()
        return found
