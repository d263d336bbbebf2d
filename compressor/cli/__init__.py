"""The command line. Verbs are imported when they are run, so that `llmc --help` answers at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from compressor import __version__, meant
from compressor.cli.say import say
from compressor.errors import Interrupted, LlmcError, nearest
from compressor.escaping import one_line
from compressor.files import is_disk_full
from compressor.interpreter import SAFE_PATH
from compressor.interrupted import interrupted

# verb -> (module, one line of help)
VERBS = {
    "compress": ("compressor.cli.compress", "Compress a model for a target, verify the artifact and measure it."),
    "init": ("compressor.cli.init", "Write a commented recipe, after a few questions."),
    "inspect": ("compressor.cli.inspect", "Say what a model, adapter, artifact or run is."),
    "passes": ("compressor.cli.listing", "List the passes, or the options of one."),
    "targets": ("compressor.cli.listing", "List the targets, or the options of one."),
    "audit": ("compressor.cli.audit", "Check calibration text: size, duplicates, overlap, languages, chat template."),
    "verify": ("compressor.cli.verify", "Check an artifact against its manifest, on any machine."),
    "compare": (
        "compressor.cli.compare",
        "Compare runs; or find out whether the quantization or the runtime is at fault.",
    ),
    "bench": ("compressor.cli.bench", "Compare the speed of models and artifacts."),
    "score": ("compressor.cli.score", "Score tasks on your own data: accuracy, F1, AUC, ROUGE, BLEU, exact match."),
    "lm-eval": ("compressor.cli.lm_eval", "Score tasks of lm-evaluation-harness on a model, step or artifact."),
    "gate": ("compressor.cli.gate", "Judge a run against limits: PASS, FAIL or INCONCLUSIVE."),
    "bisect": ("compressor.cli.bisect", "Find the pass and the layers that caused a gate failure."),
    "report": ("compressor.cli.report", "Show the report of a run."),
    "track": ("compressor.cli.track", "Log a run to MLflow or Weights & Biases."),
    "doctor": ("compressor.cli.doctor", "Show what is installed and which targets can run here."),
    "completion": ("compressor.cli.completion", "Print the completion script for bash, zsh or fish."),
}
KEPT = {  # what an interrupted verb leaves to go on from
    "compress": "Finished steps are kept; --resume goes on from there.",
    "gate": "What --more-samples has measured of more text is kept; the same command goes on from there.",
    "score": "In a run, finished tasks are kept; the same command goes on from there.",
    "bisect": "Layers and repairs that were tried are kept; the same command goes on from there.",
}


class LazyGroup(click.Group):
    """A click group whose verbs live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS and ctx.resilient_parsing:  # a shell asks what could be meant
            return None
        if cmd_name not in VERBS:
            ctx.fail(f"No such verb {cmd_name!r}; {nearest(cmd_name, VERBS, meant.VERBS.get(cmd_name.lower(), ()))}")
        return getattr(import_module(VERBS[cmd_name][0]), f"{cmd_name.replace('-', '_')}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, option, asked: _show_version(context) if asked else None,
    help="Show the version and the runtimes found, and exit.",
)
@click.option("-v", "--verbose", count=True, help="Log to stderr; -vv logs details.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool, verbose: int) -> None:
    """llmc compresses a trained language model for the runtime it ships on, verifies the result bit for bit, and
    measures it against the original."""
    _log(verbose)


def _show_version(context: click.Context) -> None:
    from compressor.environment import runtimes

    say(f"llmc, version {__version__}")
    say("runtimes: " + (", ".join(f"{name} {found}" for name, found in runtimes().items()) or "none found"))
    context.exit()


class _Echo(logging.Handler):
    """Log lines on stderr, above progress bars where there are some."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


def _log(verbose: int) -> None:
    """Show what the packages of llmc log: with -v what is done, with -vv in detail."""
    handler = _Echo()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    for package in ("compressor", "passes", "targets", "calibration"):
        logger = logging.getLogger(package)
        logger.handlers = [handler] if verbose else []
        logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the command line and turns every outcome into an exit code.

    0 done, 1 gate failed or artifact damaged, 2 bad usage or bad input, 3 gate inconclusive, 4 a run that broke,
    5 nothing wrong found in an artifact of which not everything could be checked.
    """
    words = sys.argv[1:] if arguments is None else arguments
    os.environ.update(SAFE_PATH)  # for what libraries start: resource trackers, workers
    _catch_interrupts()
    try:
        code = cli.main(words, prog_name="llmc", standalone_mode=False) or 0
    except click.ClickException as error:
        said = error.format_message().replace("\n\t", " ")  # click has a choice a line
        click.UsageError(one_line(said), getattr(error, "ctx", None)).show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        code = _interrupted(words)
    except BaseException as error:  # extension libraries have errors of their own that are no Exception
        if "--debug" in words:
            traceback.print_exc()
        # An extension that was interrupted in the middle may report an error of its own instead.
        is_known = isinstance(error, Interrupted) or not interrupted.is_set()
        code = explain(error) if is_known else _interrupted(words)
    sys.exit(code)


def _catch_interrupts() -> None:
    """Make Ctrl-C and SIGTERM a KeyboardInterrupt, and an event that tells later that one came."""
    interrupted.clear()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, interrupt)


def _interrupted(words: list[str]) -> int:
    verb = next((word for word in words if word in VERBS), None)
    return explain(Interrupted(KEPT.get(verb or "")))


def explain(error: BaseException, target: str | None = None) -> int:
    """Say on stderr what a command broke on, and for which of several targets; the exit code that goes with it."""
    if isinstance(error, LlmcError):
        return _fail(f"{target}: {error}" if target else str(error), error.hint, error.exit_code)
    if is_disk_full(error):
        return _fail("The disk is full; nothing half-written was left behind.", "Free some space and run again.", 4)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    where = f"The run for {target}" if target else "The run"
    return _fail(f"{where} broke: {type(error).__name__}: {reason}", "llmc --debug ... shows where.", 4)


def _fail(sentence: str, hint: str | None, code: int) -> int:
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    say(sentence, err=True)
    if hint:
        click.secho("Hint:  ", fg="yellow", nl=False, err=True)
        say(hint, err=True)
    return code


def emit_json(value: Any) -> None:
    """Print a value as the verb's JSON result on stdout."""
    import json

    click.echo(json.dumps(value, indent=2, default=str))
