"""Runtimes that live in environments of their own, since they pin other versions of what llmc uses: where they are.

Nothing is ever installed or fetched here; `make engines` makes the environments.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compressor.errors import InputError, nearest
from compressor.interpreter import safe_environment

CHECKOUT = Path(__file__).resolve().parents[1]
OFF = "none"
ASK_TIMEOUT_S = 60
# Prints name and version of the first of some distributions that an environment has.
ASK = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


@dataclass(frozen=True)
class Place:
    """Where an engine is: an interpreter that can import it, or the address of a server that already runs.

    Attributes:
        distribution: that brings it there, of which a build for the CPU may have a name of its own.
    """

    python: Path | None = None
    url: str | None = None
    distribution: str | None = None
    version: str | None = None

    @property
    def is_for_cpu(self) -> bool:
        """Whether its package is a build for the CPU, which says so in its name or version."""
        return "cpu" in f"{self.distribution} {self.version}"

    def __str__(self) -> str:
        return self.url or f"{self.distribution} {self.version}, {self.python}"


@dataclass(frozen=True)
class Engine:
    """A runtime that targets open artifacts in.

    Attributes:
        distributions: Python packages that bring it, the usual one first.
        has_server: whether a running one may be given by its URL.
    """

    name: str
    distributions: tuple[str, ...]
    has_server: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that says where it is; `--engine` of the command line sets it."""
        return "LLMC_ENGINE_" + self.name.upper().replace("-", "_").replace(".", "_")

    @property
    def usual_place(self) -> Path:
        """Where `make engines` puts its environment, beside the checkout's own."""
        return CHECKOUT / f".venv-{self.name}"

    def why_missing(self) -> str | None:
        """None where it can be run, else the reason and what to do about it."""
        found = self._look()
        return found if isinstance(found, str) else None

    def place(self) -> Place:
        """Where it is.

        Raises:
            InputError: it is not here, see `why_missing`.
        """
        found = self._look()
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _look(self) -> Place | str:
        given = os.environ.get(self.variable)
        if given == OFF:
            return f"{self.name} is switched off"
        if given:
            return self._given(given)
        for python in (_interpreter(self.usual_place), Path(sys.executable)):
            if python is not None and (found := _ask(python, self.distributions)):
                return Place(python, None, *found)
        return f"{self.name} is not here; `make engines`, or --engine {self.name}=ENVIRONMENT"

    def _given(self, given: str) -> Place | str:
        if given.startswith(("http://", "https://")):
            return Place(url=given.rstrip("/")) if self.has_server else f"{self.name} cannot be asked by a URL"
        python = _interpreter(Path(given).expanduser())
        if python is None:
            return f"{given}, given for {self.name}, is no Python environment"
        found = _ask(python, self.distributions)
        return Place(python, None, *found) if found else f"{given} has no {self.distributions[0]}"


def choose(given: Iterable[str], known: Iterable[Engine]) -> None:
    """Take what the command line says of engines, NAME=ENVIRONMENT each.

    Raises:
        InputError: no such engine, or it is not there.
    """
    engines = {engine.name: engine for engine in known}
    for text in given:
        name, equals, place = text.partition("=")
        if name not in engines:
            raise InputError(f"Unknown engine {name!r}; {nearest(name, engines)}")
        if not equals or not place:
            raise InputError(f"--engine {text} says no place.", f"--engine {name}=ENVIRONMENT, or {name}={OFF}")
        os.environ[engines[name].variable] = place
        reason = engines[name].why_missing()
        if reason is not None and place != OFF:
            raise InputError(f"{reason}.")


def _interpreter(place: Path) -> Path | None:
    """The interpreter that a path names: of an environment, or itself. Links stay, for they are what makes a venv."""
    candidates = (place, place / "bin" / "python", place / "Scripts" / "python.exe")
    return next((path.absolute() for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


@cache
def _ask(python: Path, distributions: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and version of the first of these distributions in an environment; None: it has none of them."""
    command = [str(python), "-c", ASK, *distributions]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False, env=safe_environment()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.split()
    return (words[0], words[1]) if done.returncode == 0 and len(words) == 2 else None
