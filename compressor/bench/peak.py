"""Peak memory of one workload: run in a process of its own, where nothing else has been.

python -m compressor.bench.peak PATH BATCH PROMPT OUTPUT
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil

from compressor.errors import LlmcError, RunError
from compressor.interpreter import safe_environment
from compressor.measure.latency import Workload, generate
from compressor.measure.memory import PeakMemory

TIMEOUT_S = 3600


def peak_memory(path: Path, workload: Workload) -> int:
    """Peak resident bytes of opening a folder and of one generation: of the process, and of those that it starts.

    Raises:
        RunError: it broke.
    """
    sizes = map(str, (workload.batch, workload.prompt, workload.output))
    command = [sys.executable, "-m", __name__, str(path), *sizes]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=safe_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"its memory could not be measured: it did not end within {TIMEOUT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RunError(f"its memory could not be measured: {lines[-1] if lines else f'code {done.returncode}'}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def main() -> None:
    """Print the bytes as JSON."""
    from compressor.bench.subjects import open_subject

    path, batch, prompt, output = Path(sys.argv[1]), *map(int, sys.argv[2:])
    try:
        with PeakMemory() as peak:
            session, architecture = open_subject(path)
            with closing(session):
                tokens = np.arange(prompt) % architecture.vocab_size
                generate(session, np.tile(tokens, (batch, 1)), output)
                started = sum(_peak_of(child) for child in psutil.Process().children(recursive=True))
    except LlmcError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(json.dumps({"bytes": peak.bytes + started}) + "\n")


def _peak_of(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return int(process.memory_info().rss)
    found = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return 0 if found is None else int(found.split()[1]) * 1024


if __name__ == "__main__":
    main()
