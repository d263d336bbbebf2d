"""Rows of the quantizer comparison: each is one subprocess, whose cost and folder are kept."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import Peer
from process import Usage, measure
from pydantic import TypeAdapter

from calibration.dataset import digest_tokens
from compressor.checkpoint import Checkpoint
from compressor.code_version import code_version
from compressor.environment import environment
from compressor.errors import InputError, LlmcError
from compressor.files import TEMPORARY_PREFIX, digest_json, remove_leftovers, write_json
from compressor.recipe import make_recipe

SETTING, TOKENS, TURNS = "setting.json", "tokens.npy", "turns.json"


@dataclass(frozen=True)
class Row:
    """A quantizer with its options.

    Attributes:
        kind: what the weights become; rows of one kind have equal bits and are compared with each other.
        options: what the tool's script in `peers` takes, as JSON values.
        rivals: another kind of equal bits to be compared with.
    """

    name: str
    kind: str
    tool: str
    peer: Peer
    options: Mapping[str, Any]
    rivals: str | None = None

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-")

    def version(self) -> str:
        """Digest of what decides the row's bytes beside model and tokens.

        Raises:
            InputError: it names a pass or an option that does not exist.
        """
        passes = make_recipe({"model": "", "passes": self.options.get("passes", []), "target": "hf"}).build_passes()
        code = [code_version(type(one)) for one in passes]
        return digest_json({"options": self.options, "code": code, "packages": self.peer.requirements})


@dataclass(frozen=True)
class Cost:
    """What a row's process tree took. Importing the tool is given by itself and not part of wall and CPU time."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    import_s: float
    import_rss_bytes: int


@dataclass(frozen=True)
class Judgement:
    """How good a row's folder is, or why that cannot be said.

    Attributes:
        key: digest of the tokens and of the original it was judged against.
        windows: [windows, 4] as `compressor.measure.accuracy.summarize` takes them.
        bits: mean bits of a weight of the decoder's linears, with scales counted as 16-bit numbers.
        size_bytes: of all tensors as they are stored.
        parameters: of the model, a tied head counted once.
        zeros: share of the weights of the decoder's linears that are zero.
    """

    key: str
    windows: list[list[float]] | None = None
    bits: float | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    zeros: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Result:
    """A finished row.

    Attributes:
        version: `Row.version` when it was run.
        run: the invocation of the benchmark that ran it; rows of one run were run one after the other.
        load: the machine's load average over the minute before.
    """

    row: str
    options: Mapping[str, Any]
    version: str
    packages: str
    run: str
    machine: str
    load: float
    cost: Cost
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Turns:
    """Rows that took turns: what each cost, round by round, so that a drifting machine is fair to all."""

    run: str
    machine: str
    costs: Mapping[str, list[Cost]]


@dataclass(frozen=True)
class Bench:
    """A folder with one model, one token matrix, and the rows that were run on them."""

    out: Path
    model: Path
    threads: int
    run_id: str

    @classmethod
    def open(cls, out: Path, model: Path, tokens: torch.Tensor, threads: int) -> Bench:
        """Make the folder, or go on in it.

        Raises:
            InputError: it holds rows of another model or of other tokens.
        """
        setting = {
            "model": Checkpoint.open(model).digest,
            "tokens": digest_tokens(tokens),
            "shape": list(tokens.shape),
        }
        (out / "rows").mkdir(parents=True, exist_ok=True)
        remove_leftovers(out / "rows")
        path = out / SETTING
        if path.exists() and json.loads(path.read_text()) != setting:
            raise InputError(f"{out} holds rows of another model or other tokens.", "Choose another --out.")
        np.save(out / TOKENS, tokens.numpy())
        write_json(path, setting)
        return cls(out, model, threads, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def folder(self, row: Row) -> Path:
        """What the row made; its figures and its log lie beside it."""
        return self.out / "rows" / row.slug

    def result(self, row: Row) -> Result | None:
        """What the row gave when it was run with these options, and None when it was not."""
        return finished(self.out, [row]).get(row.name)

    def save(self, row: Row, result: Result) -> None:
        write_json(self._beside(row, "json"), asdict(result))

    def run(self, row: Row) -> Result:
        """Run a row and keep its folder, its figures and its log; an interrupted one leaves nothing.

        Raises:
            InputError: it names a pass or an option that does not exist.
            RunError: the tool ended with an error.
        """
        version, packages, load = row.version(), row.peer.run("versions"), round(os.getloadavg()[0], 2)
        with self._trial(row) as (folder, cost):
            kept = self.folder(row)
            self._beside(row, "json").unlink(missing_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
        result = Result(row.name, row.options, version, packages, self.run_id, self.machine, load, cost)
        self.save(row, result)
        return result

    def run_all(self, rows: Iterable[Row], again: bool) -> dict[str, LlmcError]:
        """Run the rows that are not finished, or all of them; why the others of them could not be run, by name."""
        problems: dict[str, LlmcError] = {}
        for row in rows:
            if not again and self.result(row) is not None:
                continue
            print(f"running {row.name}", file=sys.stderr)
            try:
                self.run(row)
            except LlmcError as error:
                problems[row.name] = error
        return problems

    def time_in_turns(self, rows: Sequence[Row], rounds: int) -> dict[str, LlmcError]:
        """Run the rows one after the other, `rounds` times over; all times are kept, and what the last round made."""
        costs: dict[str, list[Cost]] = {row.name: [] for row in rows}
        problems: dict[str, LlmcError] = {}
        for _, row in itertools.product(range(rounds), rows):
            if row.name not in problems:
                try:
                    costs[row.name].append(self.run(row).cost)
                except LlmcError as error:
                    problems[row.name] = error
        whole = {name: taken for name, taken in costs.items() if name not in problems}
        self._add_turns(Turns(self.run_id, self.machine, whole))
        return problems

    @property
    def machine(self) -> str:
        facts = environment()
        memory = f"{facts['memory_bytes'] / 2**30:.0f} GiB"
        return f"{facts['cpu']}, {facts['cores']} cores, {memory}, {self.threads} threads used"

    def _add_turns(self, turns: Turns) -> None:
        kept = [*all_turns(self.out), turns]
        write_json(self.out / TURNS, [asdict(one) for one in kept])

    def _beside(self, row: Row, suffix: str) -> Path:
        return self.out / "rows" / f"{row.slug}.{suffix}"

    @contextmanager
    def _trial(self, row: Row) -> Iterator[tuple[Path, Cost]]:
        """The folder a row makes, which vanishes if it is not moved, and the cost of making it."""
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=self.out / "rows") as name:
            scratch = Path(name).resolve()
            paths = (self.model.resolve(), (self.out / TOKENS).resolve(), scratch / "out", scratch / "note")
            command = row.peer.command("quantize", *paths, json.dumps(row.options))
            start = time.time()
            usage = measure(command, self._beside(row, "log"), self._environment(scratch))
            yield scratch / "out", _without_import(usage, start, json.loads((scratch / "note").read_text()))

    def _environment(self, scratch: Path) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled"),  # nobody profits from an earlier compilation
        }


def finished(out: Path, rows: Iterable[Row]) -> dict[str, Result]:
    """Results that a bench's folder holds, by name; those of other options than the row's are left out."""
    found = {}
    for row in rows:
        path = out / "rows" / f"{row.slug}.json"
        if path.exists() and (out / "rows" / row.slug).exists():
            result = TypeAdapter(Result).validate_json(path.read_bytes())
            if result.options == row.options:
                found[row.name] = result
    return found


def all_turns(out: Path) -> list[Turns]:
    """What `Bench.time_in_turns` has kept, oldest first."""
    path = out / TURNS
    return TypeAdapter(list[Turns]).validate_json(path.read_bytes()) if path.exists() else []


def _without_import(usage: Usage, start: float, imported: Mapping[str, float]) -> Cost:
    import_s = imported["time"] - start
    return Cost(
        wall_s=usage.wall_s - import_s,
        cpu_s=usage.cpu_s - imported["cpu_s"],
        peak_rss_bytes=usage.peak_rss_bytes,
        import_s=import_s,
        import_rss_bytes=int(imported["peak_rss_bytes"]),
    )
