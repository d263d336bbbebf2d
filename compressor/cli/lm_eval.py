"""`llmc lm-eval`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from compressor.cli.engines import batch_size_option, engine_option
from compressor.cli.paths import UserPath
from compressor.cli.say import say
from compressor.errors import InputError, MissingExtra

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


@click.command("lm-eval")
@click.argument("model", type=UserPath(exists=True))
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks, as lm_eval knows them, or task files (.yaml).")
@click.option("--include-path", type=UserPath(exists=True), help="Folder of task files of your own.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples in a prompt.  [default: the task's]")
@click.option("--limit", type=click.IntRange(1), help="Samples of each task.  [default: all]")
@click.option("--apply-chat-template", is_flag=True, help="Render prompts through the model's chat template.")
@click.option("-o", "--output", type=UserPath(), help="Folder for the logs, which `llmc gate --lm-eval` reads.")
@click.option("--network", is_flag=True, help="Let lm_eval download data sets and metrics.")
@batch_size_option
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lm_eval_command(model: Path, tasks: str, network: bool, as_json: bool, **options: Any) -> None:
    """Score tasks of lm-evaluation-harness on MODEL: a model folder, a step, an artifact in its own runtime, or a run
    (its artifact).

    Nothing is downloaded without --network: data come from the local cache, or from files that the task names.

    \b
    llmc lm-eval my-model --tasks boolq --include-path tasks -o before
    llmc lm-eval out/artifact --tasks boolq --include-path tasks -o after
    llmc gate out --lm-eval before after --max-accuracy-drop 2%
    """
    if not network:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))  # before the packages that read them
    results = _evaluate(model, tasks, options)
    if as_json:
        from compressor.cli import emit_json
        from compressor.ledger import finite

        emit_json(finite(results))
        return
    for task, scores in results.items():
        say(task, bold=True)
        for name, value in scores.items():
            if isinstance(value, float) and "_stderr" not in name:
                error = scores.get(name.replace(",", "_stderr,"))
                spread = f" ± {error:.4f}" if isinstance(error, float) else ""
                say(f"  {name.removesuffix(',none')} {value:.4f}{spread}")


def _evaluate(model: Path, tasks: str, options: dict[str, Any]) -> dict[str, Any]:
    """Scores by task."""
    from compressor.cli.progress import ConsoleProgress

    try:
        import lm_eval
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm-eval", "lm-eval", "llmc lm-eval") from error
    from compressor.lm_eval_model import LlmcLM

    include = None if options["include_path"] is None else str(options["include_path"])
    tracker = EvaluationTracker(output_path=None if options["output"] is None else str(options["output"]))
    try:
        names = _known(TaskManager(include_path=include), tasks)
    except KeyError as error:
        raise InputError(
            f"lm_eval knows no task {error.args[0]!r}.", "--include-path names a folder of yours."
        ) from error
    with ConsoleProgress(after=2.0) as progress, closing(LlmcLM(str(model), progress, options["batch_size"])) as asked:
        found = lm_eval.simple_evaluate(
            model=asked,
            model_args=f"pretrained={model}",
            tasks=names,
            task_manager=TaskManager(include_path=include),
            num_fewshot=options["num_fewshot"],
            limit=options["limit"],
            apply_chat_template=options["apply_chat_template"],
            evaluation_tracker=tracker,
            log_samples=True,
        )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for task, lines in samples.items():
        tracker.save_results_samples(task, lines)
    return found["results"]


def _known(manager: Any, tasks: str) -> list[Any]:
    """Tasks by name, or by file.

    Raises:
        KeyError: there is no such task.
    """
    from lm_eval import utils

    found = []
    for name in tasks.split(","):
        if Path(name).is_file():
            found.append(utils.load_yaml_config(name))
        elif manager.match_tasks([name]):
            found += manager.match_tasks([name])
        else:
            raise KeyError(name)
    return found
