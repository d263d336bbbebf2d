"""llm-compressor, which pins other versions of what llmc uses: asked in a process of its own environment."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from compressor.engine import Engine
from compressor.errors import RunError
from compressor.interpreter import safe_environment

LLMCOMPRESSOR = Engine("llmcompressor", ("llmcompressor",))
WORKER = Path(__file__).with_name("llmcompressor_worker.py")
LONGEST = 300  # characters of a line that are told


def version() -> str:
    """Of the llm-compressor that is here."""
    return str(LLMCOMPRESSOR.place().version)


def look_up(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request that changes nothing; asked once, since the library takes seconds to import.

    Raises:
        InputError: llm-compressor is not here.
        RunError: it broke.
    """
    return _answer(str(LLMCOMPRESSOR.place().python), json.dumps(request))


def ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request; see `llmcompressor_worker`. Raises what `look_up` does."""
    return _answer.__wrapped__(str(LLMCOMPRESSOR.place().python), json.dumps(request))


@cache
def _answer(python: str, request: str) -> dict[str, Any]:
    with tempfile.TemporaryFile() as log:
        # Alone in its session, so that Ctrl-C is ours to handle; it ends when its input is closed.
        process = subprocess.Popen(
            [python, "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=safe_environment(),
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it has ended; the log says why
                process.stdin.write(request + "\n")
                process.stdin.flush()
            found = process.stdout.read()
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.communicate()  # closes its pipes
        if code:
            raise RunError(f"llm-compressor's process ended with code {code}; it said: {_last_line(log)}.")
    answer: dict[str, Any] = json.loads(found)
    return answer


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return (lines or ["nothing"])[-1][:LONGEST].rstrip(".")
