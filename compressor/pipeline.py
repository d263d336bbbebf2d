"""From recipes to runs: one model, opened and judged once, for one target or for several."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compressor.checks import gate_checks, model_checks, request_checks, run_folders, tasks_of
from compressor.earlier import EarlierRows
from compressor.end_tokens import EndTokens
from compressor.errors import InputError
from compressor.evaluator import Standard
from compressor.files import TEMPORARY_PREFIX, is_disk_full, remove_leftovers
from compressor.forecast import stage_work
from compressor.interrupted import interrupted
from compressor.ledger import Ledger, load_ledger
from compressor.measure.samples import SAMPLES_FOLDER
from compressor.only_one import only_one
from compressor.pass_ import Progress
from compressor.plan import Plan, check_of, original_of
from compressor.recipe import Recipe
from compressor.run import Run, Shared
from compressor.run_folder import LEDGER_FILE, OURS, STEPS_FOLDER
from compressor.settings import RunSettings
from compressor.source import Source, open_model
from compressor.stages import Stages
from compressor.steps import Steps, check_kept, clear, step_names
from compressor.tasks.scoring import Prompter
from compressor.tasks.scoring import check as check_task
from compressor.tasks.task import LoadedTask
from compressor.texts import RunTexts, Texts
from compressor.tokenizer import check_vocabulary, tokenizer_of

LOG = logging.getLogger(__name__)


def execute(
    recipes: Sequence[Recipe], settings: RunSettings, texts: Texts, progress: Progress
) -> list[Ledger | Exception]:
    """Run recipes that differ in their target, and in the passes for it.

    One recipe's run is the folder `settings.out` itself. Each of several has a folder in it, see `run_folders`, and
    their steps lie side by side: passes that targets share run once.

    Returns:
        The ledger of each run, or what one of several broke on: the others go on.

    Raises:
        InputError: a recipe cannot be run, or another run writes into the folder; nothing was done. Or the only run
            met bad input late: a folder that was made for it is gone again, unless something in it is finished.
        Exception: the only run broke, or the disk is full.
    """
    folders = run_folders(recipes, settings.out)
    for check in [*request_checks(recipes, settings, texts), *gate_checks(recipes)]:
        check()
    tasks = tasks_of(recipes[0])
    with _claimed(settings) as made, _scratch(settings.out, folders) as scratch:
        with _refusable(settings.out, made):
            source = _open_source(recipes, settings, progress)
            plans = [Plan.of(recipe, source.checkpoint, settings.allow_pickle) for recipe in recipes]
            names = step_names(plans)
            for folder, steps in zip(folders, names, strict=True):
                known = load_ledger(folder) if (folder / LEDGER_FILE).is_file() else None
                check_kept(settings.out / STEPS_FOLDER, steps, known)
            shared = _prepare(plans, source, settings, texts, tasks, scratch, progress)
        outcomes = _run_each(plans, names, folders, shared)
        if made and all(isinstance(one, InputError) for one in outcomes) and not _has_finished(settings.out, folders):
            shutil.rmtree(settings.out, ignore_errors=True)
        if not any(isinstance(one, Exception) for one in outcomes):
            clear(settings.out / STEPS_FOLDER, recipes[0].steps, names)
    if len(outcomes) == 1 and isinstance(outcomes[0], Exception):
        raise outcomes[0]
    return outcomes


def _open_source(recipes: Sequence[Recipe], settings: RunSettings, progress: Progress) -> Source:
    recipe = recipes[0]
    return open_model(
        recipe.source,
        settings.out / STEPS_FOLDER / "00-import",
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
        requantize=recipe.requantize,
        progress=progress,
        check=check_of(recipes, settings.allow_pickle),
    )


def _prepare(
    plans: Sequence[Plan],
    source: Source,
    settings: RunSettings,
    texts: Texts,
    tasks: Sequence[LoadedTask],
    scratch: Path,
    progress: Progress,
) -> Shared:
    """Load the texts, and set up what every row is measured with."""
    checkpoint, recipe = source.checkpoint, plans[0].recipe
    shape = checkpoint.architecture
    LOG.info("%s is a %s of %d parameters", recipe.model, shape.class_name, shape.parameters)
    progress("opening the model", 1, 1)
    original = original_of(checkpoint, plans[0].passes)  # passes that change it are the same for all targets
    tokenizer = tokenizer_of(original, trust_remote_code=settings.trust_remote_code)
    check_vocabulary(tokenizer, original.architecture.vocab_size)
    for check in model_checks(plans, checkpoint, texts, settings, lambda: tokenizer):
        check()
    notes = EndTokens.of(checkpoint.root, tokenizer).notes(tokenizer)
    prompter = Prompter.of(tokenizer, checkpoint.root, shape) if tasks else None
    for task in tasks:
        assert prompter is not None
        check_task(task, prompter)
    loaded = RunTexts.load(plans, original, tokenizer, texts, progress)
    for role, text in loaded.records().items():
        LOG.info("%s text: %d windows of %d tokens from %s", role, text.windows, text.length, text.source)
    judged = loaded.evaluation
    tokens = None if judged is None else judged.tokens
    origins = None if judged is None or judged.origins is None else judged.origins.int().numpy()
    measure = recipe.measure
    early = recipe.gate is None or recipe.gate.max_latency_increase is None  # a gate takes what there is
    standard = Standard(original, tokens, measure, scratch, progress, origins, tokenizer, tasks, prompter, notes, early)
    steps = Steps(settings.out / STEPS_FOLDER, loaded.calibration, original, recipe.seed, progress)
    return Shared(source, loaded, steps, standard, Stages(progress, stage_work(plans, checkpoint)))


def _run_each(
    plans: Sequence[Plan], names: Sequence[list[str]], folders: Sequence[Path], shared: Shared
) -> list[Ledger | Exception]:
    outcomes = []
    for number, (plan, steps, out) in enumerate(zip(plans, names, folders, strict=True)):
        out.mkdir(exist_ok=True)
        shared.stages.begin(number)
        outcomes.append(_outcome(Run(plan, steps, out, shared, EarlierRows.of(out, folders[:number]))))
    return outcomes


def _has_finished(out: Path, folders: Sequence[Path]) -> bool:
    """Whether there is a step, or a measured row, that --resume would use again."""
    if any(not step.name.startswith(OURS) for step in (out / STEPS_FOLDER).iterdir()):
        return True
    rows = [row for folder in folders if (folder / LEDGER_FILE).is_file() for row in load_ledger(folder).steps]
    return any(row.quality or row.latency for row in rows)


def _outcome(run: Run) -> Ledger | Exception:
    """The run's ledger, or what it broke on."""
    try:
        return run.execute()
    except Exception as error:
        if interrupted.is_set() or is_disk_full(error):  # no other run is wanted, or would get further
            raise
        return error


@contextmanager
def _claimed(settings: RunSettings) -> Iterator[bool]:
    """Be the only run in the output folder; whether it had to be made."""
    made = not settings.out.exists()
    try:
        settings.out.mkdir(parents=True, exist_ok=not made)
    except FileExistsError as error:
        raise InputError(f"Another llmc is at work in {settings.out}.", "Choose another folder.") from error
    except OSError as error:
        if is_disk_full(error):
            raise
        said = f"{settings.out} cannot be made: {error.strerror}."
        raise InputError(said, "Choose another folder with -o.") from error
    with only_one(settings.out):
        yield made


@contextmanager
def _scratch(out: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """A folder for what measuring needs and nobody keeps; leftovers of a killed run go first."""
    for folder in (out, out / STEPS_FOLDER, *folders, *(folder / SAMPLES_FOLDER for folder in folders)):
        remove_leftovers(folder)
    scratch = out / f"{TEMPORARY_PREFIX}scratch"
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _refusable(out: Path, made: bool) -> Iterator[None]:
    """Take the output folder away again, if it was `made`, where the request is refused before any work on it."""
    (out / STEPS_FOLDER).mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(out, ignore_errors=True)
        raise
