"""`llmc compress`: the whole way from a checkpoint to a verified artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.engines import engine_option
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.gate.decide import Decision
    from compressor.ledger import Ledger
    from compressor.recipe import Recipe

GATE_FILE = "gate.json"  # the verdict, where the recipe has a gate


@click.command("compress")
@click.argument("model", required=False)
@click.option("-t", "--target", help="Where it will run: onnx-int4, trt-int4, vllm-int4 ... (`llmc targets`).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.  [default: MODEL-TARGET]")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR[:WEIGHT]",
    help="A PEFT adapter (LoRA ...) to merge first: a folder or hub id; repeat for several.",
)
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), help="YAML recipe; options given here win over it."
)
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,...]",
    help="A pass; repeat for several, in order.  [default: the target's]",
)
@click.option(
    "--bits",
    type=float,
    help="Bits per weight, in the place of the preset's: 4 or 8, or an average that each layer gets its share of.",
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    help="How onnx-int4 computes: 0 with float activations, 4 with activations rounded to int8, faster.  [default: 4]",
)
@click.option("--sm", metavar="86,89,120", help="Compute capabilities that a TensorRT-RTX engine is built for.")
@click.option(
    "--requantize",
    is_flag=True,
    help="Dequantize a quantized model first and round it again; without it, its integers stay as they are.",
)
@click.option("--calibration", metavar="TEXT", help="Calibration text: .txt, .jsonl, .parquet or a datasets id.")
@click.option("--samples", type=click.IntRange(1), help="Calibration windows.  [default: 128]")
@click.option("--length", type=click.IntRange(8), help="Tokens of a calibration window.  [default: 512]")
@click.option("--seed", type=int, help="Seed of the calibration draw.  [default: 0]")
@click.option(
    "--eval", "evaluation", metavar="TEXT", help="Held-out text to judge by; the same kinds as --calibration."
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
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in the output folder.")
@click.option("--dry-run", is_flag=True, help="Check the request and show the plan; do nothing.")
@click.option(
    "--allow-pickle", is_flag=True, help="Convert pickle weights (.bin, .pt), which can run code when opened."
)
@click.option("--trust-remote-code", is_flag=True, help="Let a tokenizer run code of the model folder.")
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
def compress_command(
    model: str | None, recipe_file: Path | None, output: Path | None, as_json: bool, **options: Any
) -> int:
    """Compress MODEL (a Hugging Face folder, a .gguf file or a hub id) for a target, with a LoRA if one is given.

    \b
    llmc compress ./my-model --target onnx-int4 --calibration train.jsonl --eval held-out.txt
    llmc compress ./my-model --target trt-int4 --pass gptq:group_size=64 --calibration train.jsonl
    llmc compress ./my-model --target onnx-int4 --bits 4.5 --calibration train.jsonl
    llmc compress ./base --adapter ./my-lora --target onnx-int4 --calibration train.jsonl --eval held-out.txt
    """
    from compressor.registry import check_installation

    check_installation()
    recipe = _recipe(model, recipe_file, options)
    if chosen := _target_options(options):
        recipe = recipe.with_target_options(chosen)
    if options["dry_run"]:
        _show_plan(recipe, options, as_json)
        return 0
    out = output or Path(f"{Path(recipe.model.removesuffix('.gguf')).name}-{recipe.build_target().name}")
    ledger = _run(recipe, out, options)
    decision = _gated(recipe, out)
    _present(ledger, decision, as_json)
    return 0 if decision is None else decision.verdict.exit_code


def _target_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the target that the command line has words for."""
    level, sm = options["accuracy_level"], options["sm"]
    return _set({"accuracy_level": level and int(level), "sm": sm and sm.split(",")})


def _recipe(model: str | None, recipe_file: Path | None, options: dict[str, Any]) -> Recipe:
    from compressor.recipe import load_recipe, make_recipe

    given = _given(model, options)
    if options["bits"] is not None and (recipe_file is not None or options["passes"]):
        other = "--pass" if options["passes"] else "--recipe"
        raise InputError(f"--bits and {other} both say which passes run; give one of them.")
    if recipe_file is not None:
        return load_recipe(recipe_file, given)
    if model is None:
        raise InputError("Which model? Give a folder, a .gguf file or a hub id.", "llmc compress MODEL --target TARGET")
    if "target" not in given:
        from compressor.registry import TARGETS, names

        raise InputError("Which target? Give --target.", "Targets: " + ", ".join(names(TARGETS)) + ".")
    if "calibration" in given and "texts" not in given["calibration"]:
        raise InputError("--samples, --length and --seed describe calibration text; give --calibration too.")
    return make_recipe(given | _passes_of(options["bits"], given["target"]))


def _passes_of(bits: float | None, target: str) -> dict[str, Any]:
    """The passes that --bits stands for; none without it."""
    from compressor.recipe import preset_with_bits
    from compressor.registry import make_target, parse_spec

    return {} if bits is None else {"passes": preset_with_bits(make_target(*parse_spec(target)), bits)}


def _given(model: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What the command line says, in the recipe's own shape; what it does not say is left out."""
    calibration = {
        "texts": options["calibration"],
        "samples": options["samples"],
        "length": options["length"],
        "seed": options["seed"],
    }
    latency = {"batch": list(options["batch"]) or None, "prompt": options["prompt"], "output": options["output_tokens"]}
    measure = {
        "texts": options["evaluation"],
        "length": options["eval_length"],
        "effort": options["measure"],
        "latency": _set(latency) or None,
    }
    values = {
        "model": model,
        "adapter": [_weighted(text) for text in options["adapters"]] or None,
        "target": options["target"],
        "requantize": options["requantize"] or None,
        "passes": list(options["passes"]) or None,
        "calibration": _set(calibration) or None,
        "measure": _set(measure) or None,
    }
    return _set(values)


def _weighted(text: str) -> str | dict[str, float]:
    """An adapter, or one with its weight behind a colon."""
    source, _, weight = text.rpartition(":")
    try:
        return text if not source or Path(text).exists() else {source: float(weight)}
    except ValueError:
        return text


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _run(recipe: Recipe, out: Path, options: dict[str, Any]) -> Ledger:
    from compressor.cli.progress import ConsoleProgress
    from compressor.cli.texts import RecipeTexts
    from compressor.files import write_whole
    from compressor.pipeline import Run, RunSettings
    from compressor.report.markdown import render

    settings = RunSettings(out, options["resume"], options["allow_pickle"], options["trust_remote_code"])
    with ConsoleProgress() as progress:
        ledger = Run(recipe, settings, RecipeTexts(), progress).execute()
    write_whole(out / "report.md", render(ledger))
    return ledger


def _gated(recipe: Recipe, out: Path) -> Decision | None:
    """The verdict of the recipe's gate, which is left in `gate.json`; None without a gate."""
    if recipe.gate is None:
        return None
    from compressor.files import write_json
    from compressor.gate.gate import gate
    from compressor.gate.subject import Run

    decision = gate(Run.open(out), recipe.gate)
    write_json(out / GATE_FILE, decision.plain())
    return decision


def _present(ledger: Ledger, decision: Decision | None, as_json: bool) -> None:
    if as_json:
        from compressor.cli import emit_json

        emit_json(ledger.plain() | ({} if decision is None else {"gate": decision.plain()}))
        return
    from rich.console import Console

    from compressor.report.terminal import show

    show(ledger, Console())
    if decision is not None:
        from compressor.gate import terminal

        click.echo()
        terminal.show(decision, Console())


def _show_plan(recipe: Recipe, options: dict[str, Any], as_json: bool) -> None:
    import tempfile
    from collections import Counter

    from compressor.cli import emit_json
    from compressor.cli.progress import ConsoleProgress
    from compressor.pipeline import check_gate, check_pickles, check_plan, check_values
    from compressor.source import open_model

    check_gate(recipe, recipe.build_target())
    with tempfile.TemporaryDirectory() as scratch, ConsoleProgress() as progress:
        source = open_model(
            recipe.model,
            Path(scratch) / "import",
            allow_pickle=options["allow_pickle"],
            trust_remote_code=options["trust_remote_code"],
            requantize=recipe.requantize,
            progress=progress,
        )
        recipe = recipe.for_model(source.checkpoint.schemes)
        check_pickles(recipe.build_passes(), options["allow_pickle"])
        passes, target = recipe.build_passes(), recipe.build_target()
        schemes = check_plan(source.checkpoint, passes, target)
        check_values(source.checkpoint, passes, schemes, target)
    architecture = source.checkpoint.architecture
    for one in passes:
        architecture = one.reshaped(architecture)
    linears = architecture.linears()
    counts = Counter(str(schemes[name]) if name in schemes else "left as it is" for name in linears)
    choosing = [one.name for one in passes if one.chooses_schemes]
    if as_json:
        emit_json({"recipe": recipe.written_out(), "linears": counts, "chosen_by": choosing})
        return
    click.echo(" -> ".join([recipe.model, *(one.spelled() for one in passes), target.name]))
    for scheme, count in counts.items():
        click.echo(f"  {scheme}" if choosing else f"  {count:5} linears  {scheme}")
    if choosing:
        click.echo(f"How many linears get which of these is what {choosing[0]} finds out.")
    click.echo("Nothing stands in the way; leave out --dry-run to run it.")
