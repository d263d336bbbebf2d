"""How fast is SmolLM2-135M in ONNX Runtime, next to onnxruntime-genai's own model builder and llama.cpp?

    python benchmarks/runtime.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --calibration wikitext2/valid.txt \\
        --evaluation wikitext2/test.txt --out out/runtime [--threads 1 2] [--rounds 9]

The models stay open in a process each and take turns, a prompt and some tokens a turn, so that what else the machine
does falls on all of them. Everything that is made or measured is kept in --out: a second call goes on where the first
ended, and times again what --again names. The engines get environments of their own, .venv-genai and
.venv-llama-cpp-python (compiled, half an hour of one core), the first time. Writes benchmarks/results/runtime.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from peer import BENCHMARKS
from runtime_profile import profile
from runtime_report import document
from runtime_rows import GENAI, LLAMA, MODELS, ROWS, Model, Row, Workshop, copy_bandwidth, weight_bytes

from calibration.dataset import load_tokens
from compressor.checkpoint import Checkpoint
from compressor.environment import environment
from compressor.files import write_json, write_whole
from compressor.measure.accuracy import Reference, session_scores
from compressor.registry import make_target
from compressor.target import Artifact
from compressor.tokenizer import load_tokenizer

TIMES, QUALITY, PROFILE = "times-{}.json", "quality.json", "profile.json"
PROFILED = ("llmc-channel", "genai")


def main() -> None:
    """Make, judge, time and profile what is not there yet, and write the tables."""
    given = _arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(given.gguf, given.calibration, given.out)
    artifacts = {name: workshop.artifact(model) for name, model in MODELS.items()}
    judge_all(workshop, artifacts, given)
    if given.prepare:
        return
    for threads in given.threads:
        path = given.out / TIMES.format(threads)
        if threads in given.again or not path.exists():
            write_json(path, asdict(take_turns(artifacts, threads, given)))
    path = given.out / PROFILE
    if given.again or not path.exists():
        write_json(path, {name: profile(artifacts[name], given.prompt) for name in PROFILED})
    times = {threads: json.loads((given.out / TIMES.format(threads)).read_text()) for threads in given.threads}
    quality, profiles = (json.loads((given.out / name).read_text()) for name in (QUALITY, PROFILE))
    facts = {"environment": environment(), "remark": given.remark, "windows": given.windows}
    sizes = {name: weight_bytes(model, artifacts[name]) for name, model in MODELS.items()}
    write_whole(given.results, document(facts, times, quality, profiles, sizes))
    print(given.results.read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--out", type=Path, default=Path("out/runtime"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--again", type=int, nargs="*", default=[], help="threads to time although they were timed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--prepare", action="store_true", help="make and judge the models, and time nothing")
    parser.add_argument("--clock", choices=["perf_counter", "process_time"], default="perf_counter",
                        help="process_time: CPU seconds, for a busy machine; of one thread only")  # fmt: skip
    parser.add_argument("--remark", default="", help="a sentence for the results, such as what else the machine did")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "runtime.md")
    return parser.parse_args()


@dataclass(frozen=True)
class Times:
    """What the rows took, round by round.

    Attributes:
        first: seconds to the first token, by row.
        token: median seconds of a token after it, by row.
        peak_bytes: the largest resident set of each row's process.
        bandwidth: of copies, in bytes a second, before and after the rounds.
    """

    threads: int
    prompt: int
    steps: int
    clock: str
    first: dict[str, list[float]]
    token: dict[str, list[float]]
    peak_bytes: dict[str, int]
    bandwidth: list[float]


def take_turns(artifacts: dict[str, Path], threads: int, given: argparse.Namespace) -> Times:
    """Time every row, round by round; the first round warms up and is left out."""
    prompt = np.random.default_rng(0).integers(100, 40000, given.prompt).tolist()
    workers = {row.name: _Worker(row, artifacts[row.model.name], threads, prompt, given) for row in ROWS}
    times = Times(threads, given.prompt, given.steps, given.clock, {}, {}, {}, [])
    try:
        for worker in workers.values():
            worker.wait()
        times.bandwidth.append(copy_bandwidth(threads))
        for number in range(given.rounds + 1):
            for name, worker in workers.items():
                turn = worker.turn()
                if number:
                    times.first.setdefault(name, []).append(turn["first"])
                    times.token.setdefault(name, []).append(float(np.median(turn["others"])))
                times.peak_bytes[name] = turn["peak_bytes"]
            print(f"\r{threads} threads: round {number} of {given.rounds}", end="", file=sys.stderr)
        times.bandwidth.append(copy_bandwidth(threads))
    finally:
        for worker in workers.values():
            worker.end()
    print(file=sys.stderr)
    return times


class _Worker:
    """The process of one row."""

    def __init__(self, row: Row, artifact: Path, threads: int, prompt: list[int], given: argparse.Namespace) -> None:
        command = row.command(artifact.resolve(), threads, json.dumps(prompt), given.steps, given.clock)
        self._name = row.name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **row.environment},
        )

    def wait(self) -> None:
        """Until the model is open."""
        while self._line() != "ready":
            pass  # what the runtime itself prints

    def turn(self) -> dict:
        assert self._process.stdin is not None
        time.sleep(0.05)  # threads of the row before may still spin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"The process of {self._name} ended.")
        return line.strip()


def judge_all(workshop: Workshop, artifacts: dict[str, Path], given: argparse.Namespace) -> None:
    """Divergence of every model from the original on held-out text, unless it is known."""
    path = given.out / QUALITY
    known = json.loads(path.read_text()) if path.exists() else {}
    missing = [model for name, model in MODELS.items() if name not in known]
    if not missing:
        return
    original = Checkpoint.open(workshop.original)
    text = load_tokens(given.evaluation, load_tokenizer(original.root), samples=given.windows, length=512, seed=None)
    reference = Reference.make(original, text.tokens, given.out / "states.npy", _silent)
    for model in missing:
        session = _session(model, artifacts[model.name], text.tokens, given.out)
        known[model.name] = asdict(session_scores(session, reference, _silent).quality)
        write_json(path, known)
        print(f"judged {model.name}: KL {known[model.name]['kl']['value']:.4f}", file=sys.stderr)


def _session(model: Model, artifact: Path, tokens: torch.Tensor, out: Path):
    if model.maker == "llmc":
        return make_target("onnx-int4", {}).open(Artifact(artifact, "onnx-int4"))
    return _PeerSession(model, artifact, tokens, out)


class _PeerSession:
    """Logits that a peer left in files. Implements as much of `compressor.target.Session` as judging needs."""

    def __init__(self, model: Model, artifact: Path, tokens: torch.Tensor, out: Path) -> None:
        self._folder = out / "logits"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        np.save(out / "tokens.npy", tokens.numpy())
        peer = LLAMA if model.maker == "llama.cpp" else GENAI
        peer.run("logits", artifact.resolve(), out / "tokens.npy", self._folder)
        self._number = 0

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        path = self._folder / f"{self._number}.npy"
        self._number += 1
        yield 0, np.load(path)
        path.unlink()


def _silent(done: int, total: int) -> None:
    pass


if __name__ == "__main__":
    main()
