"""A runtime's process: started in a session of its own, so that everything it starts ends with it."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from compressor.errors import RunError
from compressor.interpreter import safe_environment

SITE = Path(__file__).parent / "site"  # what every interpreter of the runtime runs first
END_S = 15  # between asking a process to end and ending it
BLAMED = ("Error:", "error:", "Error ", "Value error", "Illegal instruction", "Killed")
LONGEST = 300  # characters of a line that are told
ELSEWHERE = "root cause"  # vLLM's processes say so of each other: "see stack trace above for the root cause"


class EngineProcess:
    """A running command. What it says goes to a log; its pipes are unbuffered bytes.

    Args:
        name: of the runtime, as sentences about it call it.
        piped: whether its standard input and output are pipes of ours; else they belong to the log.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], piped: bool = False) -> None:
        self.name = name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the process
        channel = subprocess.PIPE if piped else subprocess.DEVNULL
        try:
            self.process = subprocess.Popen(
                command,
                stdin=channel,
                stdout=subprocess.PIPE if piped else self._log,
                stderr=self._log,
                env=safe_environment({**_site(), **environment}),
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise RunError(f"{name} cannot be started ({error.strerror}: {command[0]}).") from error
        atexit.register(self.close)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def failure(self, what: str) -> RunError:
        """An error about it in one sentence, with the line of its log that says most; it is ended."""
        self.close()
        line = self.blamed_line()
        return RunError(f"{self.name} {what}" + (f"; it said: {line[:LONGEST].rstrip('.')}" if line else "") + ".")

    def death(self) -> RunError:
        """The error that it ended when it should not have."""
        code = self.process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return self.failure(how)

    def blamed_line(self) -> str:
        """The last line of the log that names an error and not where one is named, or its last line."""
        if self._log.closed:
            return self._line
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        blamed = [line for line in lines if any(word in line for word in BLAMED)]
        causes = [line for line in blamed if ELSEWHERE not in line]
        return (causes or blamed or lines or [""])[-1]

    def close(self) -> None:
        """End the process and all that it started; again is no error."""
        if self._log.closed:
            return
        atexit.unregister(self.close)
        self._end(signal.SIGTERM)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._end(signal.SIGKILL)  # what it started may outlive it
            self.process.wait()
            self._line = self.blamed_line()
            for stream in (self.process.stdin, self.process.stdout, self._log):
                if stream is not None:
                    _close(stream)

    def _end(self, kind: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, kind)


def _site() -> dict[str, str]:
    paths = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "LLMC_PARENT": str(os.getpid())}


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # of what was still to be said to a process that has ended
        stream.close()
