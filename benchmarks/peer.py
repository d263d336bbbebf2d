"""A peer in an environment of its own: other tools pin other versions of what llmc uses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import ENVIRONMENTS, Environment, is_whole

BENCHMARKS = Path(__file__).resolve().parent

Row = tuple[str, str, bool]  # what was compared, how it came out, whether that is parity


@dataclass(frozen=True)
class Peer:
    """A virtual environment beside the checkout, and the script that is run in it.

    Attributes:
        requirements: what to install, one list of packages after the other, if `environments` does not know it.
    """

    environment: str
    script: str
    requirements: Sequence[Sequence[str]] = ()

    def run(self, *arguments: object) -> str:
        """What the script prints for these arguments; a failure ends the benchmark with its last lines."""
        command = self.command(*arguments)
        # The folder of the script is where it finds the modules that peers share.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        return done.stdout.strip()

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs the script with these arguments, once its environment is there."""
        root = BENCHMARKS.parent / self.environment
        if not is_whole(root):
            self._make()
        return [str(part) for part in (root / "bin" / "python", BENCHMARKS / "peers" / self.script, *arguments)]

    def _make(self) -> None:
        """Make the environment; a failed or interrupted installation is removed, so that it is never used."""
        name = self.environment.removeprefix(".venv-")
        (ENVIRONMENTS.get(name) or Environment(name, self.requirements, "pass")).make()


def table(rows: Iterable[Row]) -> list[str]:
    """Markdown lines of the comparison."""
    lines = [f"| {what} | {outcome} | {'yes' if good else 'NO'} |" for what, outcome, good in rows]
    return ["| compared | outcome | parity |", "|---|---|---|", *lines]


def report(name: str, rows: Iterable[Row], lines: Iterable[str]) -> int:
    """Print and keep benchmarks/results/NAME.md; 1 when a row is no parity."""
    text = "\n".join(lines) + "\n"
    (BENCHMARKS / "results").mkdir(exist_ok=True)
    (BENCHMARKS / "results" / f"{name}.md").write_text(text)
    print(text)
    return int(not all(good for _, _, good in rows))
