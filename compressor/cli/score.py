"""`llmc score`: tasks on the user's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.engines import batch_size_option, engine_option
from compressor.cli.paths import UserPath
from compressor.cli.say import say

if TYPE_CHECKING:
    from compressor.ledger import StepRecord, TaskRecord
    from compressor.measure.answers import Answerer
    from compressor.measure.statistics import Estimate
    from compressor.pass_ import Progress
    from compressor.reopen import Reopened
    from compressor.tasks.scoring import Scores
    from compressor.tasks.task import LoadedTask


@click.command("score")
@click.argument("model", type=UserPath(), metavar="RUN_OR_MODEL")
@click.option("--task", "tasks", multiple=True, required=True, type=UserPath(), help="A task file; repeatable.")
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Rows of the run.  [default: original, artifact]")
@click.option("--original", metavar="MODEL", help="Where the original model is now.  [default: where it was]")
@batch_size_option
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score_command(
    model: Path, tasks: tuple[Path, ...], rows: tuple[str, ...], original: str | None, batch_size: int, as_json: bool
) -> None:
    """Score tasks on your own data (JSON lines and a prompt template; see docs/tasks.md).

    For a run, it scores the original, and the artifact in its own runtime (or the last step if the runtime is not
    installed). It keeps every answer beside the ledger, for `llmc gate`. For any other model folder, step or
    artifact, it prints the scores.

    \b
    llmc score out --task sentiment.yaml
    llmc gate out --max-accuracy-drop 2%
    """
    from compressor.cli import emit_json
    from compressor.cli.progress import ConsoleProgress
    from compressor.run_folder import LEDGER_FILE, one_of_the_runs_in
    from compressor.tasks.task import load_tasks

    loaded = load_tasks(tasks)
    if model.is_dir() and (hint := one_of_the_runs_in(model)) and not (model / LEDGER_FILE).is_file():
        from compressor.errors import InputError

        raise InputError(f"{model} holds runs for several targets.", hint)
    with ConsoleProgress(after=2.0) as progress:
        if (model / LEDGER_FILE).is_file() or model.name == LEDGER_FILE:
            found = _score_run(model, loaded, rows, original, batch_size, progress)
        else:
            _refuse(model, {"--row": rows, "--original": original})
            found = _score_folder(model, loaded, batch_size, progress)
    if as_json:
        emit_json(_plain(found))
    else:
        _show(found, loaded)


def _refuse(model: Path, given: dict[str, Any]) -> None:
    from compressor.errors import InputError

    for option in (name for name, value in given.items() if value):
        raise InputError(
            f"{option} is for a run, and {model} is none: it has no ledger.json.",
            f"Give the run's folder, or leave out {option}.",
        )


Found = dict[str, dict[str, "dict[str, Estimate]"]]  # metrics by row and task


def _score_run(
    path: Path,
    loaded: Sequence[LoadedTask],
    names: Sequence[str],
    model: str | None,
    batch_size: int,
    progress: Progress,
) -> Found:
    import tempfile
    from functools import partial

    from compressor.gate.subject import ORIGINAL, Run
    from compressor.only_one import only_one
    from compressor.reopen import Reopened
    from compressor.report.files import write_reports
    from compressor.tasks.ask import ask
    from compressor.tasks.scoring import Prompter
    from compressor.tokenizer import load_tokenizer

    run = Run.open(path)
    with only_one(run.folder), tempfile.TemporaryDirectory(prefix="llmc-") as scratch:
        reopened = Reopened(run, Path(scratch), progress, model)
        rows = [run.row(name) for name in names] or [run.row(ORIGINAL), reopened.judged()]
        original = reopened.original()
        prompter = Prompter.of(load_tokenizer(original.root), original.root, original.architecture)
        for row in rows:
            ask(run.folder, run.ledger, row, loaded, prompter, progress, partial(_answerer, reopened, row, batch_size))
    write_reports(run.folder)
    for row in rows:
        _say_broken(row.name, {one.name: one for one in row.tasks}, loaded)
    return {row.name: {one.name: one.metrics for one in row.tasks if one.name in _names(loaded)} for row in rows}


def _names(loaded: Sequence[LoadedTask]) -> set[str]:
    return {one.name for one in loaded}


def _answerer(reopened: Reopened, row: StepRecord, batch_size: int) -> Answerer:
    from compressor.gate.subject import ORIGINAL
    from compressor.measure.answers import CheckpointAnswerer, SessionAnswerer

    if reopened.is_artifact(row):
        return SessionAnswerer(reopened.session(), batch_size)
    return CheckpointAnswerer(reopened.original() if row.name == ORIGINAL else reopened.step(row), batch_size)


def _score_folder(path: Path, loaded: Sequence[LoadedTask], batch_size: int, progress: Progress) -> Found:
    import tempfile

    from compressor.open_folder import open_folder
    from compressor.tasks.scoring import score

    with tempfile.TemporaryDirectory(prefix="llmc-") as scratch:
        answerer, prompter = open_folder(path, Path(scratch), progress, batch_size)
        with closing(answerer):
            found = {
                task.name: score(task, answerer, prompter, _report(progress, f"asking {task.name}")) for task in loaded
            }
    name = f"{path}, {answerer.runtime}"
    _say_broken(name, found, loaded)
    return {name: {task: scores.metrics for task, scores in found.items()}}


def _say_broken(row: str, scored: Mapping[str, TaskRecord | Scores], loaded: Sequence[LoadedTask]) -> None:
    from compressor.tasks.metrics import remark

    for task in loaded:
        said = remark(task.name, scored[task.name].broken, len(task.samples))
        if said is not None:
            say(f"{row}: {said}.", fg="yellow", err=True)


def _report(progress: Progress, what: str) -> Any:
    return lambda done, total: progress(what, done, total)


def _plain(found: Found) -> Any:
    from dataclasses import asdict

    from compressor.ledger import finite

    return finite(
        {
            row: {task: {name: asdict(one) for name, one in metrics.items()} for task, metrics in tasks.items()}
            for row, tasks in found.items()
        }
    )


def _show(found: Found, loaded: Sequence[LoadedTask]) -> None:
    from compressor.report.numbers import estimate

    for row, tasks in found.items():
        say(row, bold=True)
        for task in loaded:
            scores = "  ".join(f"{name} {estimate(one, percent=True)}" for name, one in tasks[task.name].items())
            say(f"  {task.name} ({len(task.samples)} samples): {scores}")
