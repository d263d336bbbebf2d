"""What `llmc bisect` finds on a real model, what it takes, and whether its repair holds.

    python benchmarks/bisecting.py MODEL --eval TEXT --work FOLDER [--limit kl=0.4] [--pass rtn:group_size=64]

Rounds the model, judges it by a limit that it fails, and prints as Markdown what `llmc bisect --apply` says, with the
time and the memory of both commands. FOLDER keeps the run and what it took; a run that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from process import Usage, measure

from compressor.checkpoint import Checkpoint
from compressor.environment import environment
from compressor.files import write_json
from compressor.ledger import load_ledger

LLMC = (sys.executable, "-P", "-c", "from compressor.cli import main; main()")
MIB = 1 << 20
BUSY = 2  # times as much wall time as CPU time, from which on others had the CPU
SHORT = ("--prompt", "8", "--output-tokens", "2")  # latency is not looked at here


def main() -> None:
    """Run both commands and print the page."""
    given = _arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    run, mended, page = (given.work / name for name in ("run", "mended", "blame.md"))
    options = ["--pass", given.spec, "--eval", str(given.evaluation), "--eval-length", str(given.eval_length), *SHORT]
    if given.calibration is not None:
        options += ["--calibration", str(given.calibration), "--samples", str(given.samples)]
        options += ["--length", str(given.length)]
    compress = [*LLMC, "compress", str(given.model), "--target", given.target, *options, "-o", str(run)]
    cost = given.work / "compress.json"
    if not cost.is_file():
        write_json(cost, asdict(_measured(compress, given.work)))
    limit = [f"--max-{given.limit.partition('=')[0]}", given.limit.partition("=")[2]]
    bisect = [*LLMC, "bisect", str(run), *limit, "--budget", str(given.budget)]
    found = _measured([*bisect, "--apply", str(mended), "--markdown", str(page)], given.work)
    costs = {"compress": Usage(**json.loads(cost.read_text())), "bisect --apply": found}
    print(_document(given, run, page.read_text(), costs))


def _document(given: argparse.Namespace, run: Path, page: str, costs: dict[str, Usage]) -> str:
    facts, shape, texts = environment(), Checkpoint.open(given.model).architecture, load_ledger(run).texts
    measured = "; ".join(f"{name}: {one.windows} × {one.length} tokens of {Path(one.source).name}"
                         for name, one in texts.items())  # fmt: skip
    limit = f"--max-{given.limit.replace('=', ' ')}"
    rows = [f"| {name} | {usage.wall_s:.0f} | {usage.cpu_s:.0f} | {usage.peak_rss_bytes / MIB:.0f} |"
            for name, usage in costs.items()]  # fmt: skip
    waited = any(usage.wall_s > BUSY * usage.cpu_s for usage in costs.values())
    parts = [
        "# A failed gate, bisected",
        "Printed by `benchmarks/bisecting.py`.",
        f"Model: {given.model.resolve().name}, {shape.parameters:,} parameters in {shape.layers} layers of width "
        f"{shape.hidden_size}. {measured}. {facts['cpu']}, torch {facts['packages']['torch']}.",
        f"`llmc compress --target {given.target} --pass {given.spec}`, then "
        f"`llmc bisect {limit} --budget {given.budget:g} --apply`:",
        page.strip(),
        "\n".join(["| command | wall s | CPU s | peak memory, MiB |\n|---|---:|---:|---:|", *rows]),
        *(["The machine was busy with other work: wall times say little."] if waited else []),
        "The repaired run is judged by the same gate: PASS.",  # else the command does not end with 0
    ]
    return "\n\n".join(parts)


def _measured(command: list[str], work: Path) -> Usage:
    """The cost of a command, which has to end with 0: of `bisect --apply`, that is a PASS of the repaired run."""
    return measure(command, work / f"{command[3]}.log", {})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--eval", dest="evaluation", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", default="kl=0.4", help="metric=value, as in --max-kl 0.4")
    parser.add_argument("--pass", dest="spec", default="rtn:group_size=64")
    parser.add_argument("--target", default="trt-int4", help="which holds int8 layers too")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration window")
    parser.add_argument("--eval-length", type=int, default=128)
    parser.add_argument("--budget", type=float, default=120, help="minutes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
