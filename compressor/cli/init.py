"""`llmc init`: a recipe to begin with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from compressor.cli.completion import targets
from compressor.cli.paths import UserPath
from compressor.cli.say import say
from compressor.errors import InputError

QUESTIONS = {
    "model": "The model (a folder, a .gguf file or a hub id)",
    "target": "The target (llmc targets lists them)",
    "calibration": "Calibration text (.txt, .csv, .jsonl or .parquet; empty for none)",
    "evaluation": "Evaluation text to judge by (empty for none)",
}
NEEDED = ("model", "target")


@click.command("init")
@click.argument("file", type=UserPath(), default="recipe.yaml")
@click.option("--model", metavar="MODEL", help="A Hugging Face folder, a .gguf file or a hub id.")
@click.option("-t", "--target", metavar="TARGET", shell_complete=targets, help="Where it will run (`llmc targets`).")
@click.option("--adapter", metavar="DIR", help="A PEFT adapter to merge first.")
@click.option("--calibration", metavar="TEXT", help="Text that passes calibrate on.")
@click.option("--eval", "evaluation", metavar="TEXT", help="Evaluation text to measure on.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def init_command(file: Path, force: bool, as_json: bool, **given: str | None) -> None:
    """Write a commented recipe to FILE (recipe.yaml) for `llmc compress --recipe FILE`.

    On a terminal, asks for what no option says. Elsewhere --model and --target are needed.

    \b
    llmc init
    llmc init edge.yaml --model ./my-model --target onnx-int4 --calibration train.jsonl --eval evaluation.txt
    """
    from compressor.cli import emit_json
    from compressor.files import write_whole
    from compressor.recipe import make_recipe
    from compressor.registry import TARGETS, load

    if file.exists() and not force:
        raise InputError(f"{file} already exists.", "Choose another name, or --force to write over it.")
    answers = _ask(given) if sys.stdin.isatty() else _complete(given)
    make_recipe({"model": answers["model"], "target": answers["target"]}).check_names()
    preset = load(TARGETS, "target", str(answers["target"]).partition(":")[0]).preset
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, recipe_text(answers, preset))
    if as_json:
        emit_json({"recipe": str(file), "next": f"llmc compress --recipe {file} --dry-run"})
    else:
        say(f"Written: {file}")
        say(f"Next:    llmc compress --recipe {file} --dry-run")


def _ask(given: dict[str, str | None]) -> dict[str, Any]:
    """Answers of the user to what no option says."""
    answers: dict[str, Any] = dict(given)
    for name, question in QUESTIONS.items():
        if answers[name] is None:
            default = None if name in NEEDED else ""
            answers[name] = click.prompt(question, default=default, show_default=False, err=True).strip() or None
    return answers


def _complete(given: dict[str, str | None]) -> dict[str, Any]:
    missing = [f"--{name}" for name in NEEDED if given[name] is None]
    if missing:
        raise InputError(f"There is no terminal to ask on; give {' and '.join(missing)}.", "llmc init --help")
    return dict(given)


def recipe_text(answers: dict[str, Any], preset: tuple[str, ...]) -> str:
    """The recipe, with a comment at each key and what is left out as comments."""
    passes = "".join(f"#   - {one}\n" for one in preset) or "#   []\n"
    parts = [
        "# What `llmc compress --recipe` does with this file. Options on the command line win over it.\n",
        f"model: {_scalar(answers['model'])}  # a folder, a .gguf file or a hub id\n",
        _or_comment("adapter", answers["adapter"], "./my-lora", "a PEFT adapter that is merged first"),
        f"target: {_scalar(answers['target'])}  # `llmc targets` lists what there is; `targets:` takes a list\n",
        "\n# Passes run in this order; left out, they are the target's own. `llmc passes` lists them.\n",
        f"# passes:\n{passes}",
        "\n# Text that passes calibrate on. It should be like what the model will be used for.\n",
        _section("calibration", answers["calibration"], "train.jsonl"),
        "#   samples: 128  # windows; fewer where the text holds no more\n#   length: 512  # tokens of a window\n",
        "\n# Evaluation text: perplexity and KL divergence of every step are measured on it.\n",
        _section("measure", answers["evaluation"], "evaluation.txt"),
        "#   effort: quick  # at most 24 windows; full takes all, none measures nothing\n",
        "#   tasks: [task.yaml]  # your own data, see `llmc score --help`\n",
        "\n# What must hold for exit code 0.\n# gate:\n#   max_perplexity_increase: 2%\n",
        "\n# steps: keep  # the folders that passes leave; last keeps one, none keeps nothing\n",
    ]
    return "".join(parts)


def _or_comment(key: str, value: str | None, example: str, said: str) -> str:
    return f"{key}: {_scalar(value)}  # {said}\n" if value else f"# {key}: {example}  # {said}\n"


def _section(key: str, text: str | None, example: str) -> str:
    return f"{key}:\n  texts: {_scalar(text)}\n" if text else f"# {key}:\n#   texts: {example}\n"


def _scalar(value: Any) -> str:
    """A value as YAML on one line, quoted where it has to be."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).splitlines()[0]
