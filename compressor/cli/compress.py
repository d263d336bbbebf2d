"""`llmc compress`: the whole way from a checkpoint to a verified artifact."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.completion import passes, targets
from compressor.cli.dry_run import show_plans
from compressor.cli.engines import engine_option
from compressor.cli.paths import UserPath
from compressor.cli.request import recipes_of
from compressor.cli.say import say
from compressor.measure import BATCH_SIZE
from compressor.settings import RunSettings

if TYPE_CHECKING:
    from compressor.api import Outcome
    from compressor.recipe import Recipe


@click.command("compress")
@click.argument("model", required=False)
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    shell_complete=targets,
    help="Where it will run: onnx-int4, trt-int4, vllm-int4 ... (`llmc targets`); repeat for several.",
)
@click.option("-o", "--output", type=UserPath(), help="Folder to make.  [default: MODEL-TARGET]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.  [default: its main branch]")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR[:WEIGHT]",
    help="A PEFT adapter (LoRA ...) to merge first: a folder or hub id; repeat for several.",
)
@click.option(
    "--tokenizer",
    type=click.Choice(["base", "adapter"]),
    help="Which tokenizer and chat template to use.  [default: the adapter's, if it has one]",
)
@click.option("--no-adapter", is_flag=True, help="Ignore an adapter in the model's folder.")
@click.option("--recipe", "recipe_file", type=UserPath(), help="YAML recipe; options on the command line override it.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,...]",
    shell_complete=passes,
    help="A pass to run (`llmc passes`); repeat for several, in order.  [default: the target's]",
)
@click.option(
    "--bits",
    type=float,
    help="Bits per weight of the default passes: 4, 8, or an average such as 4.5, distributed by sensitivity.",
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    help="How onnx-int4 computes: 0 with float activations; 4 with int8 activations, faster.  [default: 4]",
)
@click.option("--sm", metavar="86,89,120", help="Compute capabilities to build a TensorRT-RTX engine for.")
@click.option(
    "--requantize",
    is_flag=True,
    help="Dequantize a quantized model first, then quantize it again. Without it, its integers are repacked.",
)
@click.option("--calibration", metavar="TEXT", help="Calibration text: .txt, .csv, .jsonl, .parquet or a datasets id.")
@click.option("--samples", type=click.IntRange(1), help="Calibration windows.  [default: 128]")
@click.option("--length", type=click.IntRange(8), help="Tokens of a calibration window.  [default: 512]")
@click.option("--seed", type=int, help="Seed of the calibration draw.  [default: 0]")
@click.option("--strict", is_flag=True, help="Refuse calibration text for which `llmc audit` has a warning.")
@click.option(
    "--eval", "evaluation", metavar="TEXT", help="Evaluation text to measure on; the same kinds as --calibration."
)
@click.option(
    "--allow-same-text", is_flag=True, help="Measure on the calibration text itself, which makes results look too good."
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="FILE",
    help="A task to score the original and the artifact on; repeatable.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help=f"Texts of tasks in a batch, if the runtime takes batches.  [default: {BATCH_SIZE}]",
)
@click.option("--eval-length", type=click.IntRange(8), help="Tokens of an evaluation window.  [default: 512]")
@click.option(
    "--measure",
    type=click.Choice(["quick", "full", "none"]),
    help="quick: at most 24 windows; full: all of the text.  [default: quick]",
)
@click.option(
    "--batch", type=click.IntRange(1), multiple=True, help="Batch size to time; repeat for several.  [default: 1]"
)
@click.option("--prompt", type=click.IntRange(1), help="Prompt tokens of the timed workload.  [default: 128]")
@click.option("--output-tokens", type=click.IntRange(2), help="Generated tokens of the timed workload.  [default: 32]")
@click.option(
    "--steps",
    type=click.Choice(["keep", "last", "none"]),
    help="Which steps to keep when the run is done; bisect and --resume need all.  [default: keep]",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run in the output folder.")
@click.option("--dry-run", is_flag=True, help="Check the request and show the plan; run nothing.")
@click.option(
    "--allow-pickle", is_flag=True, help="Convert pickle weights (.bin, .pt), which can run code when opened."
)
@click.option("--trust-remote-code", is_flag=True, help="Let a tokenizer run code from the model's folder.")
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
def compress_command(
    model: str | None, recipe_file: Path | None, output: Path | None, as_json: bool, **options: Any
) -> int:
    """Compress MODEL (a Hugging Face folder, a .gguf file or a hub id) for a target, and merge an adapter if given.

    \b
    llmc compress ./my-model --target onnx-int4 --calibration train.jsonl --eval evaluation.txt
    llmc compress ./my-model --target trt-int4 --pass gptq:group_size=64 --calibration train.jsonl
    llmc compress ./my-model --target onnx-int4 --target trt-int4 --calibration train.jsonl
    llmc compress ./my-model --target onnx-int4 --bits 4.5 --calibration train.jsonl
    llmc compress ./base --adapter ./my-lora --target onnx-int4 --calibration train.jsonl --eval evaluation.txt
    llmc compress ./base --adapter ./my-lora --target hf --eval evaluation.txt        # only merge
    """
    from compressor.registry import check_installation

    check_installation()
    from compressor.api import default_output

    recipes = recipes_of(model, recipe_file, options)
    out = output or default_output(recipes)
    settings = RunSettings(out, options["resume"], options["allow_pickle"], options["trust_remote_code"])
    if options["dry_run"]:
        return show_plans(recipes, settings, as_json)
    outcomes = _run(recipes, settings)
    _present(outcomes, as_json)
    broken = [_explain(one.ledger, one.target) for one in outcomes if isinstance(one.ledger, Exception)]
    codes = [one.decision.verdict.exit_code for one in outcomes if one.decision is not None]
    # A run that broke comes first, then a gate that failed, then one that cannot tell.
    return broken[0] if broken else min(filter(None, codes), default=0)


def _run(recipes: Sequence[Recipe], settings: RunSettings) -> list[Outcome]:
    from compressor.api import run_recipes
    from compressor.cli.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return run_recipes(recipes, settings, progress)


def _present(outcomes: Sequence[Outcome], as_json: bool) -> None:
    if as_json:
        from compressor.cli import emit_json

        found = {one.target: one.plain() for one in outcomes}
        emit_json({"targets": found} if len(found) > 1 else outcomes[0].plain())
        return
    from rich.console import Console

    from compressor.gate import terminal
    from compressor.report.terminal import show

    if ledgers := [one.ledger for one in outcomes if not isinstance(one.ledger, Exception)]:
        show(ledgers, Console())
    for one in outcomes:
        if one.decision is not None:
            say()
            if len(outcomes) > 1:
                say(f"{one.target}:")
            terminal.show(one.decision, Console())


def _explain(error: Exception, target: str) -> int:
    """Say what the run for one of several targets broke on; the exit code that goes with it."""
    from compressor.cli import explain

    if click.get_current_context().find_root().params["debug"]:
        traceback.print_exception(error)
    return explain(error, target)
