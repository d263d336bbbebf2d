"""An artifact in vLLM: its HTTP server in its own environment, started and ended here, or one that already runs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architecture import Architecture, read_config, resolve
from compressor.engine import Place
from compressor.errors import RunError
from compressor.target import Ended
from targets.engines import VLLM
from targets.engines.process import EngineProcess
from targets.engines.vllm_client import Client, Likely
from targets.serving import SERVED_LENGTH

LIKELY = 100  # tokens told of each position; a vocabulary of them would be a gigabyte of JSON a text
LIKELY_BY_DEFAULT = 20  # what a server tells that was not started here
CHUNK_BYTES = 64 << 20  # of rows that are held at a time
START_TIMEOUT_S = float(os.environ.get("LLMC_ENGINE_TIMEOUT", "600"))  # 40 s on an idle machine, minutes on a busy one
LOOK_S = 0.5
END_LOOK_S = 5.0
CACHED_TOKENS = 8 * SERVED_LENGTH  # that the key-value cache has room for on a CPU, of all texts at once
BLOCK = 128  # tokens of a text for which it is taken at a time
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
ON_CPU = {
    "VLLM_CPU_INT4_W4A8": "0",  # by default it rounds the inputs of int4 weights to int8
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class VllmSession:
    """Implements `compressor.target.BatchSession`. Logits are log-probabilities, of the likeliest tokens only.

    Args:
        root: the artifact's folder.

    Raises:
        RunError: the server does not start, or serves something else.
    """

    def __init__(self, root: Path, place: Place | None = None) -> None:
        place = place or VLLM.place()
        config = read_config(root)
        self._shape = resolve(config)
        self.longest = min(SERVED_LENGTH, self._shape.max_positions)
        self._room: int | None = None  # tokens of all texts at once; of another's server nobody knows
        self._process: EngineProcess | None = None
        self._answer: Iterator[int] = iter(())
        if place.url is not None:
            self._client, self._likely = Client(place.url), LIKELY_BY_DEFAULT
        else:
            self._client, self._likely = self._start(root, place, config), LIKELY
        try:
            self._meet(root, place, config)
        except BaseException:
            self.close()
            raise

    def _start(self, root: Path, place: Place, config: Mapping[str, Any]) -> Client:
        port = _free_port()
        command = serve_command(root, place, port, config, self.longest)
        if place.is_for_cpu:
            self._room = CACHED_TOKENS
            command += ["--enforce-eager", "--kv-cache-memory-bytes", str(CACHED_TOKENS * _cache_bytes(self._shape))]
        process = EngineProcess("vLLM", command, {**OFFLINE, **(ON_CPU if place.is_for_cpu else {})})
        self._process, client = process, Client(f"http://127.0.0.1:{port}")
        try:
            _await(process, client)
        except BaseException:
            process.close()
            raise
        return client

    def _meet(self, root: Path, place: Place, config: Mapping[str, Any]) -> None:
        """Ask what is served, and by which version."""
        card = self._client.model()
        if place.url is not None and Path(card["root"]).resolve() != root.resolve():
            raise RunError(f"{place.url} serves {card['root']}, which is not {root}.")
        self.model = card["id"]
        self.longest = min(self.longest, card.get("max_model_len") or self.longest)
        kind = "server" if place.url is not None else "CPU" if place.is_for_cpu else "GPU"
        self.runtime = f"vLLM {self._client.version().partition('+')[0]} {served_dtype(config)} {kind}"

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `Session.logits`; of a text as long as is served, the last position is left out."""
        return ((start, rows) for _, start, rows in self.logits_of([tokens]))

    def logits_of(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        self._check(max(map(len, texts)))
        self._stop_answer()
        prompts = [text[: self.longest - 1].tolist() for text in texts]  # one token is always generated
        with self._blamed():
            found = self._client.likely(self.model, prompts, min(self._likely, self._shape.vocab_size))
        for number, told in enumerate(found):
            for start, rows in self._chunks(told):
                yield number, start, rows

    def _chunks(self, told: Sequence[Likely]) -> Iterator[tuple[int, np.ndarray]]:
        size = max(1, CHUNK_BYTES // (4 * self._shape.vocab_size))
        for start in range(0, len(told), size):
            rows = np.full((len(told[start : start + size]), self._shape.vocab_size), -np.inf, np.float32)
            for row, likely in zip(rows, told[start:], strict=False):
                row[list(likely)] = list(likely.values())
            yield start, rows

    def generate(self, prompts: Sequence[np.ndarray], limit: int, ended: Ended) -> list[list[int]]:
        """The server takes them in as its cache has room, and is told to stop when all have ended."""
        self._check(max(map(len, prompts)) + limit)
        self._stop_answer()
        found: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        with self._blamed(), closing(self._client.rows(self.model, [one.tolist() for one in prompts], limit)) as told:
            for rows in told:
                for number in list(running):
                    if _follow(found[number], rows[number], limit, ended):
                        running.remove(number)
                if not running:
                    return found
        raise RunError("vLLM ended the generation.")

    def chat(self, content: str, tokens: int = 32) -> str:
        """The greedy answer to a user's message, through the model's own chat template."""
        with self._blamed():
            return self._client.chat(self.model, content, tokens)

    def prefill(self, tokens: np.ndarray, limit: int | None = None) -> int:
        wanted = limit or self.longest - tokens.shape[1]
        self._check(tokens.shape[1] + wanted, len(tokens))
        self._stop_answer()
        self._answer = self._client.generate(self.model, tokens.tolist(), wanted)
        return self._next()

    def decode(self, token: int) -> int:
        """Give the next token of the generation; the server has chosen `token` itself."""
        if token != self._last:
            raise RunError(f"vLLM went on with token {self._last}, and not with {token}.")
        return self._next()

    def close(self) -> None:
        self._stop_answer()
        if self._process is not None:
            self._process.close()

    def _check(self, length: int, batch: int = 1) -> None:
        if length > self.longest:
            raise RunError(f"vLLM serves {self.longest} tokens here, and the text has {length}.")
        if self._room is not None and batch * -(-length // BLOCK) * BLOCK > self._room:
            # It would stop some texts and start them again later, which is no batch any more.
            raise RunError(f"vLLM's cache has room for {self._room} tokens here, and {batch} texts take {length} each.")

    def _next(self) -> int:
        with self._blamed():
            found = next(self._answer, None)
            if found is None:
                raise RunError("vLLM ended the generation.")
        self._last = found
        return found

    def _stop_answer(self) -> None:
        close = getattr(self._answer, "close", None)
        if close is not None:
            close()
        self._answer = iter(())

    def _blamed(self) -> _Blame:
        return _Blame(self._process)


class _Blame:
    """Context manager: a request that failed because the server's process has ended is told as that."""

    def __init__(self, process: EngineProcess | None) -> None:
        self._process = process

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RunError) and self._process is not None and self._died(self._process):
            raise self._process.death() from error

    @staticmethod
    def _died(process: EngineProcess) -> bool:
        """Whether it has ended, or does so soon: a server answers that its engine broke, and ends then."""
        limit = time.monotonic() + END_LOOK_S
        while not process.has_ended and time.monotonic() < limit:
            time.sleep(LOOK_S)
        return process.has_ended


def _follow(found: list[int], told: Sequence[int], limit: int, ended: Ended) -> bool:
    """Take over what was told of a text, as far as it goes; whether it is at its end."""
    for token in told[len(found) :]:
        found.append(token)
        if len(found) == limit or ended(found):
            return True
    return False


def serve_command(root: Path, place: Place, port: int, config: Mapping[str, Any], length: int) -> list[str]:
    """The command that serves a folder for comparing: nothing is remembered between requests."""
    return [
        *(str(place.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(root)),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", served_dtype(config)),
        *("--max-model-len", str(length), "--max-logprobs", str(LIKELY), "--no-enable-prefix-caching"),
    ]


def served_dtype(config: Mapping[str, Any]) -> str:
    """What a folder is served in: its own dtype, or bfloat16 where that is float32, which has no kernels for int4."""
    return "bfloat16" if config["dtype"] == "float32" else str(config["dtype"])


def _await(process: EngineProcess, client: Client) -> None:
    """Wait until the server answers.

    Raises:
        RunError: it has ended, or takes too long.
    """
    start = time.monotonic()
    while not client.is_ready():
        if process.has_ended:
            raise process.death()
        if time.monotonic() - start > START_TIMEOUT_S:
            raise process.failure(f"was not ready after {START_TIMEOUT_S:.0f} s (LLMC_ENGINE_TIMEOUT)")
        time.sleep(LOOK_S)


def _cache_bytes(shape: Architecture) -> int:
    """Of the key-value cache, for one token at four bytes a number."""
    return 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
