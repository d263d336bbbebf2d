"""`llmc bench`: times of models and artifacts side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from compressor.cli.engines import engine_option
from compressor.cli.paths import UserPath
from compressor.cli.say import say
from compressor.escaping import rich_text

if TYPE_CHECKING:
    from compressor.bench.run import Bench, Row


@click.command("bench")
@click.argument("paths", nargs=-1, required=True, type=UserPath(), metavar="FOLDER...")
@click.option("--batch", type=click.IntRange(1), multiple=True, help="Batch size; repeat for several.  [default: 1]")
@click.option(
    "--prompt", type=click.IntRange(1), multiple=True, help="Tokens of a prompt; repeat for several.  [default: 128]"
)
@click.option(
    "--output-tokens",
    type=click.IntRange(2),
    multiple=True,
    help="Tokens generated; repeat for several.  [default: 32]",
)
@click.option(
    "--repeats",
    type=click.IntRange(2),
    default=10,
    show_default=True,
    help="Repeats of each workload; an interval needs 3.",
)
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, help="Repeats that are not counted.")
@click.option("--memory/--no-memory", default=True, help="Peak memory, each in a process of its own.  [default: on]")
@click.option("-o", "--output", type=UserPath(), help="Write the JSON here, too.")
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_command(
    paths: tuple[Path, ...],
    repeats: int,
    warmup: int,
    memory: bool,
    output: Path | None,
    as_json: bool,
    **sizes: tuple[int, ...],
) -> None:
    """Compare the speed of FOLDERs, in turns: models and steps in transformers, artifacts or runs in their runtime.

    Each further folder is compared with the first. The output says up to which batch size it is faster.

    \b
    llmc bench my-model out --batch 1 --batch 4 --batch 16
    llmc bench fp16-run int4-run --prompt 512 --output-tokens 128 --engine vllm=ENVIRONMENT
    """
    from itertools import product

    from compressor.bench.run import bench
    from compressor.cli import emit_json
    from compressor.cli.progress import ConsoleProgress
    from compressor.files import write_json
    from compressor.measure.latency import Workload

    lengths = product(sizes["prompt"] or (128,), sizes["output_tokens"] or (32,), sorted(set(sizes["batch"])) or (1,))
    workloads = [Workload(batch, prompt, tokens, repeats, warmup) for prompt, tokens, batch in lengths]
    with ConsoleProgress(after=2.0) as progress:
        found = bench(paths, workloads, memory, progress)
    if output is not None:
        write_json(output, found.plain())
    if as_json:
        emit_json(found.plain())
    else:
        _show(found)


def _show(found: Bench) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, runtime in {row.name: row.runtime for row in found.rows}.items():
        say(f"{name}: {runtime}")
    for workload in dict.fromkeys(row.workload for row in found.rows):
        table = Table(title=rich_text(f"{workload}, {workload.repeats} repeats in turns"), title_justify="left")
        for header in ("", "TTFT ms p50 / p95 / p99", "per token ms", "tokens/s", "requests/s", "peak memory"):
            table.add_column(header, justify="right" if header else "left")
        for row in found.rows:
            if row.workload == workload:
                table.add_row(*map(rich_text, (row.name, *_cells(row))))
        console.print(table)
    for row in found.rows:
        if row.not_run is not None:
            say(f"{row.name}: {row.not_run}.", fg="yellow")
    for pair in found.pairs:
        say(f"{pair.prompt} + {pair.output} tokens: {pair.sentence}")


def _cells(row: Row) -> list[str]:
    from compressor.report.tables import MISSING, estimate, size

    latency = row.latency
    if latency is None or latency.requests_per_s is None:
        return [MISSING] * 4 + [size(row.peak_bytes)]
    times = [
        " / ".join(f"{one[share]:.3g}" for share in ("p50", "p95", "p99")) for one in (latency.ttft_ms, latency.itl_ms)
    ]
    speeds = [estimate(latency.tokens_per_s), estimate(latency.requests_per_s)]
    return [*times, *speeds, size(row.peak_bytes)]
