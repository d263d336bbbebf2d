"""The Python API: each verb of the command line as one function. `import compressor as llmc` gives all of it.

    run = llmc.compress("./my-model", target="onnx-int4", calibration="train.jsonl", evaluation="evaluation.txt")
    run.ledger["onnx-int4"].perplexity
    run.gate(max_perplexity_increase="2%").verdict
    with run.artifact.open() as model:
        print(model.generate("Once upon a time"))

Every function raises `InputError` for a request that cannot be met and `RunError` for a run that broke; both have a
`hint`. `progress` is called as `progress(what, done, total)`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.audit import Verdict
    from compressor.bench.run import Bench
    from compressor.gate.decide import Decision
    from compressor.ledger import Ledger
    from compressor.measure.answers import Answerer
    from compressor.measure.statistics import Estimate
    from compressor.pass_ import Progress
    from compressor.recipe import Recipe
    from compressor.settings import RunSettings
    from compressor.tasks.scoring import Prompter

Location = str | PathLike[str]
PassSpec = str | Mapping[str, Any]  # "gptq:group_size=64", or {"gptq": {"group_size": 64}}


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


# ---- results


@dataclass(frozen=True)
class CompressedRun:
    """A finished run: its folder, and what was measured.

    Attributes:
        folder: has the artifact, the steps, the ledger and the reports.
        ledger: `ledger["gptq"]` is the row of that name.
        decision: of the recipe's gate; None where it has none.
    """

    folder: Path
    ledger: Ledger
    decision: Decision | None = None

    @property
    def artifact(self) -> ArtifactFolder:
        """What is deployed."""
        return open_artifact(self.folder)

    def gate(self, against: Location | None = None, row: str | None = None, **limits: float | str) -> Decision:
        """See `gate_run`."""
        return gate_run(self.folder, against, row, **limits)

    def score(self, *tasks: Location, progress: Progress = silent) -> dict[str, dict[str, Estimate]]:
        """See `score_folder`, of the artifact."""
        return score_folder(self.artifact.folder, *tasks, progress=progress)

    def report(self, html: bool = False) -> str:
        """The report as Markdown or as one HTML page."""
        from compressor.report.files import render_html, render_markdown

        return (render_html if html else render_markdown)(self.folder)


@dataclass(frozen=True)
class ArtifactFolder:
    """What a run made for its target."""

    folder: Path

    def verify(self, progress: Progress = silent) -> Verdict:
        """See `verify_artifact`."""
        return verify_artifact(self.folder, progress)

    @contextmanager
    def open(self, progress: Progress = silent) -> Iterator[Model]:
        """The artifact in its own runtime, see `open_model`."""
        with open_model(self.folder, progress) as model:
            yield model


@dataclass(frozen=True)
class Model:
    """A model that answers: an artifact in its own runtime, or a checkpoint in float32.

    Attributes:
        runtime: name and version of what runs it.
    """

    answerer: Answerer
    prompter: Prompter

    @property
    def runtime(self) -> str:
        return self.answerer.runtime

    def generate(self, prompt: str, max_new_tokens: int = 64, chat: bool = False) -> str:
        """The greedy continuation of a prompt, to an end token or `max_new_tokens`.

        Args:
            chat: whether the prompt is a user's message, for the model's chat template.

        Raises:
            InputError: the prompt and so many tokens are longer than the model's context.
        """
        tokens = self.prompter.encode(prompt, chat, room=max_new_tokens)
        ends = self.prompter.ends
        (found,) = self.answerer.generate([tokens], max_new_tokens, lambda made: made[-1] in ends, lambda *_: None)
        return str(self.prompter.tokenizer.decode(found, skip_special_tokens=True))


# ---- verbs


def compress(  # noqa: PLR0913 - a recipe's sections, by keyword
    model: Location | None = None,
    *,
    target: str | Mapping[str, Any] | None = None,
    passes: Sequence[PassSpec] | None = None,
    adapter: Location | Sequence[Location] | Mapping[str, float] | None = None,
    calibration: Location | Mapping[str, Any] | None = None,
    evaluation: Location | None = None,
    recipe: Location | Mapping[str, Any] | None = None,
    output: Location | None = None,
    resume: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    **sections: Any,
) -> CompressedRun:
    """Compress a model for a target: passes, artifact, verification, measurements, reports, and the recipe's gate.

    Args:
        model: a Hugging Face folder, a .gguf file or a hub id.
        target: a name such as `onnx-int4`, or `{"onnx-int4": {option: value}}`.
        passes: in order; None takes those that the target suggests.
        adapter: PEFT adapters to merge first, with weights where it is a mapping.
        calibration: the text that passes calibrate on, or the recipe's section `{"texts": ..., "samples": ...}`.
        evaluation: the text that every step is measured on.
        recipe: a file or its content; the other arguments win over it.
        output: folder to make; None is MODEL-TARGET here.
        resume: go on with an interrupted run in `output`.
        allow_pickle: convert pickle weights.
        trust_remote_code: let a tokenizer run code of the model's folder.
        sections: further sections of a recipe: `measure`, `gate`, `seed`, `requantize`.

    Raises:
        InputError: the request cannot be met; nothing was done.
        RunError: the run broke; the steps so far are kept.
    """
    from compressor.recipe import load_recipes, make_recipe
    from compressor.settings import RunSettings

    measure = {**sections.pop("measure", {}), **({} if evaluation is None else {"texts": str(evaluation)})}
    given = _given(model, target, passes, adapter, calibration) | sections | ({"measure": measure} if measure else {})
    if recipe is None or isinstance(recipe, Mapping):
        chosen = make_recipe({**(recipe or {}), **given})
    else:
        (chosen,) = load_recipes(Path(recipe), given)
    out = Path(output) if output is not None else default_output([chosen])
    (outcome,) = run_recipes([chosen], RunSettings(out, resume, allow_pickle, trust_remote_code), progress)
    if isinstance(outcome.ledger, Exception):
        raise outcome.ledger
    return CompressedRun(outcome.folder, outcome.ledger, outcome.decision)


def _given(
    model: Location | None,
    target: str | Mapping[str, Any] | None,
    passes: Sequence[PassSpec] | None,
    adapter: Location | Sequence[Location] | Mapping[str, float] | None,
    calibration: Location | Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What was given, as a recipe has it."""
    texts = {"texts": str(calibration)} if isinstance(calibration, str | PathLike) else calibration
    values = {
        "model": None if model is None else str(model),
        "target": target,
        "passes": None if passes is None else list(passes),
        "adapter": str(adapter) if isinstance(adapter, PathLike) else adapter,
        "calibration": texts,
    }
    return {name: value for name, value in values.items() if value is not None}


def open_run(folder: Location) -> CompressedRun:
    """A run that was finished earlier.

    Raises:
        InputError: there is none in the folder.
    """
    from compressor.gate.decide import load_decision
    from compressor.ledger import load_ledger

    return CompressedRun(Path(folder), load_ledger(Path(folder)), load_decision(Path(folder)))


def open_artifact(folder: Location) -> ArtifactFolder:
    """The artifact in a folder, or in that of its run.

    Raises:
        InputError: there is none.
    """
    from compressor.audit import find_artifact

    return ArtifactFolder(find_artifact(Path(folder)))


@contextmanager
def open_model(folder: Location, progress: Progress = silent) -> Iterator[Model]:
    """A model folder in float32, or an artifact in its own runtime.

    Raises:
        InputError: it is neither.
        RunError: the artifact's runtime is not here.
    """
    from compressor.open_folder import open_folder

    with tempfile.TemporaryDirectory(prefix="llmc-") as scratch:
        answerer, prompter = open_folder(Path(folder), Path(scratch), progress)
        try:
            yield Model(answerer, prompter)
        finally:
            answerer.close()


def verify_artifact(artifact: Location, progress: Progress = silent) -> Verdict:
    """Check an artifact, or that of a run, against its manifest; `findings` is empty where it is as it was made.

    Raises:
        InputError: there is no artifact.
    """
    from compressor.audit import audit, find_artifact

    return audit(find_artifact(Path(artifact)), progress)


def gate_run(run: Location, against: Location | None = None, row: str | None = None, **limits: float | str) -> Decision:
    """Judge a run: PASS, FAIL or INCONCLUSIVE, by paired tests.

    Args:
        run: its folder, or a ledger file.
        against: a baseline run; None is the original of the run itself.
        row: which row; None is what ships.
        limits: `max_perplexity_increase`, `max_accuracy_drop`, `max_latency_increase`, `max_kl`, `alpha`; without any,
            those of the run's recipe.

    Raises:
        InputError: there is no limit, or what a limit needs was not measured.
    """
    from compressor.gate.gate import gate
    from compressor.gate.limits import limits_of
    from compressor.gate.subject import Run

    judged = Run.open(Path(run))
    return gate(
        judged, limits_of(limits, judged.ledger.recipe), None if against is None else Run.open(Path(against)), row
    )


def score_folder(folder: Location, *tasks: Location, progress: Progress = silent) -> dict[str, dict[str, Estimate]]:
    """Scores of a model folder or an artifact on tasks of your own: metrics by task.

    Raises:
        InputError: a task or the folder cannot be read.
        RunError: the artifact's runtime is not here.
    """
    from compressor.tasks.scoring import check, score
    from compressor.tasks.task import load_tasks

    found = {}
    loaded = load_tasks([Path(task) for task in tasks])
    with open_model(folder, progress) as model:
        for one in loaded:
            check(one, model.prompter)
        for one in loaded:
            found[one.name] = score(
                one, model.answerer, model.prompter, partial(progress, f"asking {one.name}")
            ).metrics
    return found


def bench_folders(
    *folders: Location,
    batch: int = 1,
    prompt: int = 128,
    output: int = 32,
    repeats: int = 5,
    memory: bool = False,
    progress: Progress = silent,
) -> Bench:
    """Time models and artifacts in turns under one workload; the first is what the others are compared with.

    Raises:
        InputError: a folder cannot be timed.
        RunError: a runtime does not open.
    """
    from compressor.bench.run import bench
    from compressor.measure.latency import Workload

    return bench([Path(one) for one in folders], [Workload(batch, prompt, output, repeats)], memory, progress)


def inspect_path(path: Location) -> dict[str, Any]:
    """What a model, an adapter, a .gguf file, an artifact or a run's folder is, from headers alone.

    Raises:
        InputError: it is nothing that is known here.
    """
    from compressor.inspection import describe

    return describe(Path(path))


def list_passes() -> list[str]:
    """Names of all passes, those of plug-ins among them."""
    from compressor import registry

    return list(registry.names(registry.PASSES))


def list_targets() -> list[str]:
    """Names of all targets, those of plug-ins among them."""
    from compressor import registry

    return list(registry.names(registry.TARGETS))


# ---- what the command line shares


@dataclass(frozen=True)
class Outcome:
    """What came of one target.

    Attributes:
        ledger: of its run, or what the run broke on.
        decision: of the recipe's gate; None without a gate.
    """

    target: str
    folder: Path
    ledger: Ledger | Exception
    decision: Decision | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        if isinstance(self.ledger, Exception):
            return {"error": str(self.ledger)}
        return self.ledger.plain() | ({} if self.decision is None else {"gate": self.decision.plain()})


def default_output(recipes: Sequence[Recipe]) -> Path:
    """The folder of a run that nobody named: MODEL-TARGET, here."""
    targets = "+".join(recipe.target_name for recipe in recipes)
    return Path(f"{Path(recipes[0].model.removesuffix('.gguf')).name}-{targets}")


def run_recipes(recipes: Sequence[Recipe], settings: RunSettings, progress: Progress) -> list[Outcome]:
    """Run recipes that differ in their target; judge each by its gate, and write its reports.

    Raises:
        InputError: a recipe cannot be run; nothing was done.
        Exception: the only run broke, or the disk is full.
    """
    from compressor.checks import request_checks, run_folders
    from compressor.recipe_texts import RecipeTexts

    for check in request_checks(recipes, settings, RecipeTexts()):  # before what takes seconds to import
        check()
    progress("opening the model", 0, 1)
    from compressor.pipeline import execute
    from compressor.report.files import write_reports

    ledgers = execute(recipes, settings, RecipeTexts(), progress)
    outcomes = []
    for recipe, folder, ledger in zip(recipes, run_folders(recipes, settings.out), ledgers, strict=True):
        if isinstance(ledger, Exception):
            outcomes.append(Outcome(recipe.target_name, folder, ledger))
            continue
        outcomes.append(Outcome(recipe.target_name, folder, ledger, _gated(recipe, folder)))
        write_reports(folder)
    if len(ledgers) > 1 and settings.out.is_dir():  # bad input for all of them leaves none
        write_reports(settings.out)
    return outcomes


def _gated(recipe: Recipe, folder: Path) -> Decision | None:
    """The verdict of the recipe's gate, which is left in `gate.json`; None without a gate."""
    if recipe.gate is None:
        return None
    from compressor.gate.gate import gate
    from compressor.gate.subject import Run

    decision = gate(Run.open(folder), recipe.gate)
    decision.save(folder)
    return decision
