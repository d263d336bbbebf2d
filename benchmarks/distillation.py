"""What does distillation give back, and what does it take? Depth pruning healed; int4 trained through the quantizer.

    python benchmarks/distillation.py --model merged-lora --calibration valid.txt --evaluation test.txt \\
        [--rows depth qat ...] [--again] [--windows 12]

Every row is `llmc compress --measure none` in a process of its own; what its passes leave is judged by our code on the
same held-out tokens. Rows that are finished are kept in OUT, a folder for each model, and not run again. The table of
all that is there is printed and written to benchmarks/results/distillation.md. Exit code 1 when a bar that was
measured fails.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from judging import Judge
from process import measure

from calibration.dataset import load_tokens
from compressor.checkpoint import Checkpoint
from compressor.environment import environment
from compressor.errors import LlmcError
from compressor.files import write_json, write_whole
from compressor.ledger import load_ledger
from compressor.measure.accuracy import checkpoint_scores, summarize
from compressor.measure.statistics import Estimate, mean
from compressor.report.numbers import estimate
from compressor.tokenizer import load_tokenizer

RESULTS = Path(__file__).resolve().parent / "results" / "distillation.md"
RECOVERED_BAR = 0.7  # of the perplexity that pruning lost
BUDGET_CPU_S = 1800  # of pruning and training together: a quarter of an hour of two cores
ABOUT = "about.json"
STARTED = re.compile(r"(start=)[^,]*/([^/]+)/steps/[^,]*")  # the folder of another row


@dataclass(frozen=True)
class Row:
    """Passes, which read the same calibration windows.

    Attributes:
        start: the row whose last step a `qat` goes on from.
    """

    name: str
    passes: tuple[str, ...]
    start: str | None = None

    @property
    def slug(self) -> str:
        return _slug(self.name)

    def words(self, arguments: argparse.Namespace, out: Path) -> list[str]:
        """The command line."""
        passes = [word for one in self.passes for word in ("--pass", one)]
        if self.start is not None:
            *_, step = sorted((out.parent / _slug(self.start) / "steps").glob("[0-9]*"))
            passes[-1] += f",start={step.resolve()}"
        size = ["--samples", str(arguments.samples), "--length", str(arguments.length)]
        command = [str(Path(sys.executable).with_name("llmc")), "compress", str(arguments.model), "-t", "hf", *passes]
        return [*command, "--calibration", arguments.calibration, *size, "--measure", "none", "-o", str(out)]


PRUNE = "prune-depth:fraction=0.2"
ROWS = (
    Row("depth", (PRUNE, "distill:batch_size=2")),
    Row("depth lora", (PRUNE, "distill:lora_rank=16,batch_size=2")),
    Row("gptq", ("gptq:group_size=64",)),
    Row("tune", ("tune:group_size=64",)),
    Row("tune light", ("tune:group_size=64,iterations=50",)),
    Row("qat", ("qat:group_size=64,epochs=4",)),
    Row("tune light, qat", ("qat:group_size=64",), start="tune light"),
)
TRAINED, AFTERWARDS = ("qat", "tune light, qat"), ("gptq", "tune", "tune light")  # rows of equal bits


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    folder = arguments.out / (arguments.name or arguments.model.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for row in ROWS:
            if row.name in arguments.rows:
                _run(row, folder, arguments)
        _judge(folder, arguments)
    except LlmcError as error:
        print(f"{error} {error.hint or ''}".strip(), file=sys.stderr)
        return error.exit_code
    models = [_Model(path) for path in sorted(arguments.out.iterdir()) if (path / ABOUT).exists()]
    text = "\n\n".join(["# Distillation", "Printed by `benchmarks/distillation.py`.", *map(_section, models)]) + "\n"
    write_whole(RESULTS, text)
    print(text)
    return int(any(holds is False for model in models for _, _, holds in _bars(model)))


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", help="of the model in the table; that of its folder unless given")
    parser.add_argument("--calibration", required=True, help="text that is trained on")
    parser.add_argument("--evaluation", required=True, help="held-out text")
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="*", choices=names, default=names)
    parser.add_argument("--again", action="store_true", help="run rows although they are finished")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--length", type=int, default=256, help="tokens of one")
    parser.add_argument("--windows", type=int, default=24, help="evaluation windows, of 512 tokens")
    parser.add_argument("--threads", default="1", help="of every row")
    parser.add_argument("--out", type=Path, default=Path("out/distillation"))
    return parser.parse_args(words)


def _run(row: Row, folder: Path, arguments: argparse.Namespace) -> None:
    """Run a row and keep what it cost, unless that is there."""
    out, kept = folder / row.slug, folder / f"{row.slug}.json"
    if kept.exists() and not arguments.again:
        return
    shutil.rmtree(out, ignore_errors=True)
    usage = measure(row.words(arguments, out), out.with_suffix(".log"), {"OMP_NUM_THREADS": arguments.threads})
    machine = environment()
    about = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine['cpu']}, {arguments.threads} thread"
    text = f"{arguments.samples} × {arguments.length} tokens of {Path(arguments.calibration).name}"
    write_json(kept, {"row": asdict(row), "cost": asdict(usage), "run": about, "text": text})


def _judge(folder: Path, arguments: argparse.Namespace) -> None:
    """Judge what the passes of each finished row left, unless that was done on the same tokens."""
    tokenizer = load_tokenizer(arguments.model)
    text = load_tokens(arguments.evaluation, tokenizer, samples=arguments.windows, length=512, seed=None)
    judge = Judge.of(arguments.model, text.tokens, folder / "reference")
    for row in ROWS:
        path = folder / f"{row.slug}.json"
        found = json.loads(path.read_text()) if path.exists() else None
        if found is None or found.get("key") == judge.key:
            continue
        steps = dict(_steps(folder / row.slug, judge))
        write_json(path, found | {"key": judge.key, "steps": steps})
    about = f"{len(text.tokens)} × 512 tokens of {Path(arguments.evaluation).name}, SHA-256 {text.digest[:16]}…"
    write_json(folder / ABOUT, {"key": judge.key, "evaluation": about})


def _steps(run: Path, judge: Judge) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the ledger says of each step, and means over windows, [windows, 4], as `summarize` takes them."""
    rows = list(load_ledger(run).steps[1:-1])
    folders = sorted(path for path in (run / "steps").iterdir() if (path / "config.json").exists())
    for row, folder in zip(rows, folders, strict=True):
        windows = checkpoint_scores(Checkpoint.open(folder), judge.reference, lambda done, total: None).windows()
        step = STARTED.sub(r"\1\2", row.name)
        yield step, {"seconds": row.seconds, "peak": row.peak_rss_bytes, "windows": windows.tolist()}


class _Model:
    """What is kept of one model."""

    def __init__(self, folder: Path) -> None:
        self.name, about = folder.name, json.loads((folder / ABOUT).read_text())
        self.evaluation = about["evaluation"]
        kept = {row.name: folder / f"{row.slug}.json" for row in ROWS}
        found = {name: json.loads(path.read_text()) for name, path in kept.items() if path.exists()}
        self.rows = {name: row for name, row in found.items() if row.get("key") == about["key"]}

    def windows(self, row: str, step: int) -> np.ndarray:
        return np.array(list(self.rows[row]["steps"].values())[step]["windows"])


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _section(model: _Model) -> str:
    lines = [f"## {model.name}", f"Judged on {model.evaluation}.", _table(model)]
    lines += [f"- {claim}: {outcome} ({'holds' if holds else 'FAILS'})" for claim, outcome, holds in _bars(model)]
    runs = [f"{name}: {row['run']}, {row['text']}" for name, row in model.rows.items()]
    cost = "CPU and wall seconds and peak memory are those of the whole row, from start to artifact. Loads differ: CPU "
    return "\n\n".join(
        [
            *lines[:3],
            "\n".join(lines[3:]),
            cost + "seconds compare, wall seconds do not.",
            "\n".join(f"- {run}" for run in runs),
        ]
    )


def _table(model: _Model) -> str:
    lines = [
        "| row | step | perplexity | KL (nats) | top-1 | CPU s | wall s | peak MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in model.rows.items():
        for number, (step, one) in enumerate(row["steps"].items(), start=1):
            quality = summarize(np.array(one["windows"]))
            cells = [estimate(quality.perplexity), _fine(quality.kl), estimate(quality.top1, percent=True)]
            cost, last = row["cost"], number == len(row["steps"])
            spent = [f"{cost['cpu_s']:.0f}", f"{cost['wall_s']:.0f}", f"{cost['peak_rss_bytes'] / 2**20:.0f}"]
            lines.append("| " + " | ".join([name, f"`{step}`", *cells, *(spent if last else ["", "", ""])]) + " |")
    first = next(iter(model.rows), None)
    if first is not None:
        original = model.windows(first, 0).copy()
        original[:, 1] = original[:, 0]
        lines.insert(2, f"| original | | {estimate(summarize(original).perplexity)} | – | – | | | |")
    return "\n".join(lines)


def _fine(divergence: Estimate) -> str:
    """To the error's two significant digits, however small: what is left is compared."""
    if not divergence.stderr:
        return f"{divergence.value:.3g}"
    digits = max(0, 1 - math.floor(math.log10(divergence.stderr)))
    return f"{divergence.value:.{digits}f} ± {divergence.stderr:.{digits}f}"


def _bars(model: _Model) -> Iterator[tuple[str, str, bool]]:
    """Claims, what was measured, and whether they hold."""
    for name in ("depth", "depth lora"):
        if name in model.rows:
            share = recovered(model.windows(name, 0), model.windows(name, 1))
            spent = model.rows[name]["cost"]["cpu_s"]
            claim = f"{name}: at least {RECOVERED_BAR:.0%} of the perplexity that pruning lost comes back"
            yield claim, estimate(share, percent=True), share.value >= RECOVERED_BAR
            yield f"{name}: within {BUDGET_CPU_S} CPU seconds", f"{spent:.0f}", spent <= BUDGET_CPU_S
    known = [name for name in AFTERWARDS if name in model.rows]
    for name in (name for name in TRAINED if name in model.rows and known):
        best = min(known, key=lambda name: model.windows(name, 0)[:, 2].mean())
        gap = mean(model.windows(name, 0)[:, 2] - model.windows(best, 0)[:, 2])
        yield f"{name}: less KL than the best post-training row, {best}", f"{_fine(gap)} nats", gap.value < 0


def recovered(pruned: np.ndarray, distilled: np.ndarray) -> Estimate:
    """The share of the perplexity lost to pruning that distillation gave back, with its jackknife error over windows.

    Args:
        pruned: [windows, 4] as `summarize` takes them; so is `distilled`.
    """

    def share(kept: np.ndarray) -> float:
        original, lost, left = (np.exp(losses[kept].mean()) for losses in (pruned[:, 0], pruned[:, 1], distilled[:, 1]))
        return float((lost - left) / (lost - original))

    count = len(pruned)
    return _jackknife(share, count)


def _jackknife(statistic: Callable[[np.ndarray], float], count: int) -> Estimate:
    everything = np.arange(count)
    without = np.array([statistic(np.delete(everything, one)) for one in everything])
    error = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    return Estimate(statistic(everything), float(error))


if __name__ == "__main__":
    sys.exit(main())
