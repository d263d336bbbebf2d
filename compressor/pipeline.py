"""One run: checkpoint, passes, target, artifact, with a ledger row after every step."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from compressor import layout
from compressor import ledger as ledgers
from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.code_version import code_version
from compressor.errors import InputError, RunError
from compressor.evaluator import Evaluator
from compressor.files import TEMPORARY_PREFIX, digest_json, folder_bytes, remove_leftovers, write_whole
from compressor.ledger import ArtifactRecord, Ledger, StepRecord, TextRecord
from compressor.lowering import Lowering, artifact_bits
from compressor.measure.memory import PeakMemory
from compressor.measure.samples import SAMPLES_FOLDER
from compressor.pass_ import Need, Pass, PassContext, Progress
from compressor.quantized import Scheme
from compressor.recipe import Recipe
from compressor.registry import make_target
from compressor.source import Source, open_model
from compressor.target import Artifact, Session, Target
from compressor.tokenizer import load_tokenizer
from compressor.writer import STEP_FILE

BASE = "base, without the adapter"
MERGED = (
    "the model with its adapter, as it was fine-tuned: merged in float32 and not rounded. Everything else is compared "
    "with this, not with the base"
)


class TokenSet(Protocol):
    """Windows of tokens, and where they come from. `tokens` is int64 [windows, length], and so is `origins`, the
    number of each token's document; None for running text.
    """

    @property
    def tokens(self) -> torch.Tensor: ...
    @property
    def origins(self) -> torch.Tensor | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Texts(Protocol):
    """Turns text sources into tokens. Given by the caller: the core does not know the calibration package."""

    def calibration(self, recipe: Recipe, tokenizer: Any) -> TokenSet: ...
    def evaluation(self, recipe: Recipe, tokenizer: Any) -> TokenSet: ...
    def warnings(self, calibration: TokenSet | None, evaluation: TokenSet | None) -> list[str]: ...


@dataclass(frozen=True)
class RunSettings:
    """How to run, as opposed to what: nothing here changes a byte of the result."""

    out: Path
    resume: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass
class Run:
    """The state of one run; `execute` is the way through."""

    recipe: Recipe
    settings: RunSettings
    texts: Texts
    progress: Progress
    passes: list[Pass] = field(init=False)
    target: Target = field(init=False)
    ledger: Ledger = field(init=False)
    original: Checkpoint = field(init=False)  # what every row is compared with
    evaluator: Evaluator = field(init=False)
    shipped: StepRecord = field(init=False)  # the artifact's own row, always the ledger's last
    earlier: dict[str, StepRecord] = field(init=False)  # rows of the run that is resumed, by key

    def execute(self) -> Ledger:
        """Run the recipe and return the ledger, which is on disk too, row by row."""
        self.target, self.passes = self.recipe.build_target(), self.recipe.build_passes()
        check_gate(self.recipe, self.target)
        self.earlier = _earlier_rows(self.settings)
        with self._scratch() as scratch:
            with _refusable(self.settings.out):
                source = self._open_source()
                self.recipe = self.recipe.for_model(source.checkpoint.schemes)
                self.passes = self.recipe.build_passes()
                check_pickles(self.passes, self.settings.allow_pickle)
                schemes = check_plan(source.checkpoint, self.passes, self.target)
                check_values(source.checkpoint, self.passes, schemes, self.target)
                self.original = source.checkpoint
                for one in self.passes:
                    self.original = one.original(self.original)
                self._start_ledger()
                calibration = self._load_texts(source.checkpoint, scratch)
            self._record_original(source)
            final = self._run_passes(source.checkpoint, calibration)
            self._check_outcome(final)
            artifact = self._make_artifact(final)
            self._measure_artifact(artifact, self.original, scratch)
        return self.ledger

    # ---- before the first pass

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder for what measuring needs and nobody keeps; leftovers of a killed run go first."""
        out = self.settings.out
        for folder in (out, out / "steps", out / SAMPLES_FOLDER):
            remove_leftovers(folder)
        scratch = out / f"{TEMPORARY_PREFIX}scratch"
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _open_source(self) -> Source:
        return open_model(
            self.recipe.model,
            self.settings.out / "steps" / "00-import",
            allow_pickle=self.settings.allow_pickle,
            trust_remote_code=self.settings.trust_remote_code,
            requantize=self.recipe.requantize,
            progress=self.progress,
        )

    def _start_ledger(self) -> None:
        recipe = self.recipe.written_out()
        self.ledger = Ledger(model=self.recipe.model, recipe=recipe, environment=ledgers.environment())
        write_whole(self.settings.out / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))

    def _load_texts(self, checkpoint: Checkpoint, scratch: Path) -> TokenSet | None:
        """Load calibration and held-out text, record both, and set up the evaluator."""
        tokenizer = load_tokenizer(checkpoint.root, trust_remote_code=self.settings.trust_remote_code)
        self._check_lengths(checkpoint)
        calibration = self.texts.calibration(self.recipe, tokenizer) if self._wants_calibration() else None
        measure = self.recipe.measure
        judged = measure.texts is not None and measure.effort != "none"
        evaluation = self.texts.evaluation(self.recipe, tokenizer) if judged else None
        for role, text in (("calibration", calibration), ("evaluation", evaluation)):
            if text is not None:
                self.ledger.texts[role] = _text_record(text)
        self.ledger.warnings += self.texts.warnings(calibration, evaluation)
        if measure.texts is None and measure.effort != "none":
            self.ledger.warnings.append("Accuracy was not measured: no held-out text was given (--eval).")
        tokens = None if evaluation is None else evaluation.tokens
        origins = None if evaluation is None or evaluation.origins is None else evaluation.origins.int().numpy()
        out = self.settings.out
        self.evaluator = Evaluator(self.original, tokens, measure, scratch, self.progress, out, origins)
        return calibration

    def _wants_calibration(self) -> bool:
        wanting = [one.name for one in self.passes if Need.CALIBRATION in one.needs]
        if wanting and self.recipe.calibration is None:
            raise InputError(
                f"The pass {wanting[0]} needs calibration text.",
                "Give --calibration FILE (.txt, .jsonl or .parquet), or use --pass rtn, which needs none.",
            )
        return bool(wanting)

    def _check_lengths(self, checkpoint: Checkpoint) -> None:
        limit = checkpoint.architecture.max_positions
        calibration, measure = self.recipe.calibration, self.recipe.measure
        asked = [(calibration.length, "--length")] if calibration else []
        asked += [(measure.length, "--eval-length")] if measure.texts is not None else []
        for length, flag in asked:
            if length > limit:
                raise InputError(f"{length} tokens are longer than the model's context of {limit}.", f"{flag} {limit}")

    # ---- rows

    def _record_original(self, source: Source) -> None:
        notes = [source.imported] if source.imported else []
        merged = self.original is not source.checkpoint
        key = self.original.digest
        fresh = StepRecord("original", key=key, notes=notes + [MERGED] * merged, **_size(source.checkpoint))
        self._record(self.earlier.get(key, fresh), self.original)
        if merged and self.evaluator.tokens is not None:
            self._record_base(source.checkpoint)

    def _record_base(self, base: Checkpoint) -> None:
        """What the model was before its adapter: how much there is to lose."""
        key = base.digest
        self._record(self.earlier.get(key, StepRecord(BASE, key=key, **_size(base))), base)

    def _run_passes(self, checkpoint: Checkpoint, calibration: TokenSet | None) -> Checkpoint:
        for number, one in enumerate(self.passes, start=1):
            folder = self.settings.out / "steps" / f"{number:02}-{one.name}"
            key = step_key(one, checkpoint, calibration, self.recipe.seed)
            row = self.earlier.get(key, StepRecord(one.spelled(), key=key))
            if folder.exists():
                checkpoint = _finished_step(folder, key)
            else:
                checkpoint = self._run_pass(one, checkpoint, calibration, folder, row)
            vars(row).update(_size(checkpoint))
            self._record(row, checkpoint)
        return checkpoint

    def _check_outcome(self, final: Checkpoint) -> None:
        """Ask the target again: a pass that chooses schemes while it runs may leave what its plan did not show."""
        try:
            check_plan(final, [], self.target)
        except InputError as error:
            raise RunError(str(error), "The steps are kept; another target may take them.") from error

    def _run_pass(
        self, one: Pass, checkpoint: Checkpoint, calibration: TokenSet | None, folder: Path, row: StepRecord
    ) -> Checkpoint:
        provenance = {"pass": one.name, "options": one.options(), "input": checkpoint.digest, "key": row.key}
        tokens = None if calibration is None else calibration.tokens
        row.notes.clear()
        context = PassContext(folder, provenance, tokens, self.recipe.seed, self.progress, row.notes)
        start = time.perf_counter()
        with PeakMemory() as peak:
            result = one.apply(checkpoint, context)
        row.seconds, row.peak_rss_bytes = time.perf_counter() - start, peak.bytes
        return result

    def _record(self, row: StepRecord, checkpoint: Checkpoint) -> None:
        """Add a row, measured unless an earlier run measured it with the same tokens and workload."""
        self._add(row)  # on disk before measuring, so that a killed run keeps the pass's time and memory
        if not self.evaluator.has_measured(row):
            self.evaluator.measure_checkpoint(checkpoint, row)
            self.ledger.save(self.settings.out)

    def _add(self, row: StepRecord) -> None:
        self.ledger.steps.append(row)
        self.ledger.save(self.settings.out)

    # ---- the artifact

    def _make_artifact(self, final: Checkpoint) -> Artifact:
        out = self.settings.out / "artifact"
        unmeasured = None if self.evaluator.enabled else "measuring was switched off when it was made"
        lowering = Lowering(self.target, final, self.progress, unmeasured)
        self.shipped = self._artifact_row(self.target.name, lowering.key)
        verified = lowering.make(out, self.shipped)
        artifact = Artifact(out, self.target.name)
        # A format that is one file has its configuration inside, and is served by the same shape as the checkpoint.
        config = read_config(out) if (out / "config.json").is_file() else final.config
        run = self.target.run_command(str(out), config)
        record = ArtifactRecord(self.target.name, str(out), folder_bytes(out), artifact.digest, verified, run)
        self.ledger.artifact = record
        script = self.settings.out / "run.sh"
        command = self.target.run_command("artifact", config)
        write_whole(script, f'#!/bin/sh\ncd "$(dirname "$0")" || exit\nexec {command}\n')
        script.chmod(0o755)
        return artifact

    def _measure_artifact(self, artifact: Artifact, original: Checkpoint, scratch: Path) -> None:
        """Rows of the artifact in its own runtime, beside the original in the same runtime; its own row comes last."""
        rows = self._artifact_rows()
        reason = self.target.why_not_run() if self.evaluator.enabled else "measuring was switched off"
        if reason is not None:
            self.shipped.not_run = reason
            rows = [self.shipped]
        elif not all(self.evaluator.has_measured(row) for row in rows):
            try:
                self._run_artifact(rows, artifact, original, scratch)
            except RunError as error:  # the artifact is made and verified; only running it here failed
                self.shipped.not_run = str(error)
        for row in rows:
            self._add(row)

    def _artifact_rows(self) -> list[StepRecord]:
        key = str(self.shipped.key)
        baseline = [self._artifact_row(f"{self.target.baseline}, original", key)] if self.target.baseline else []
        others = [self._artifact_row(f"{self.target.name}, {one.label}", key) for one in self.target.variants[:-1]]
        return [*baseline, *others, self.shipped]

    def _artifact_row(self, name: str, key: str) -> StepRecord:
        """The row of this name, as an earlier run of the same artifact left it if there was one."""
        key = f"{key.partition(' ')[0]} {name}"
        return self.earlier.get(key, StepRecord(name, key=key))

    def _run_artifact(self, rows: list[StepRecord], artifact: Artifact, original: Checkpoint, scratch: Path) -> None:
        by_name = {row.name: row for row in rows}
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            if self.target.baseline is not None:
                sessions[rows[0].name] = self._open_baseline(rows[0], original, scratch / "baseline")
            for row, variant in zip(rows[-len(self.target.variants) :], self.target.variants, strict=True):
                sessions[row.name] = self.target.open(artifact, **variant.options)
            for session in sessions.values():
                stack.callback(session.close)
            self.evaluator.measure_sessions(sessions, by_name)

    def _open_baseline(self, row: StepRecord, original: Checkpoint, folder: Path) -> Session:
        """The original in the target's own runtime, unquantized."""
        target = make_target(str(self.target.baseline), {})
        folder.mkdir(parents=True)
        target.lower(original, folder, self.progress)
        row.size_bytes, row.bits_per_weight = folder_bytes(folder), artifact_bits(folder, original)
        return target.open(Artifact(folder, target.name))


def check_gate(recipe: Recipe, target: Target) -> None:
    """See that what the recipe's gate needs will be measured.

    Raises:
        InputError: it will not be.
    """
    limits, measure = recipe.gate, recipe.measure
    if limits is None:
        return
    if not limits.asked:
        raise InputError("The recipe's gate has no limit.", "Give max_perplexity_increase, for example.")
    if measure.effort == "none":
        raise InputError("The recipe has a gate, and measuring is switched off.", "Leave out --measure none.")
    if limits.needs_text and measure.texts is None:
        raise InputError(
            "The recipe has a gate on accuracy, and no held-out text to measure it on.", "Give --eval TEXT."
        )
    reason = target.why_not_run()
    if limits.max_latency_increase is not None and reason is not None:
        raise InputError(f"The gate has a limit on latency, and {target.name} cannot be run here: {reason}.")


def check_plan(checkpoint: Checkpoint, passes: list[Pass], target: Target) -> Mapping[str, Scheme]:
    """What the model's linears will be after all passes.

    Raises:
        InputError: a pass's options do not fit the model, or the target cannot take the outcome.
    """
    schemes: Mapping[str, Scheme] = checkpoint.schemes
    cache_scales = checkpoint.kv_cache
    late = next((one.name for one in passes[1:] if one.comes_first), None)
    if late is not None:
        raise InputError(f"{late} comes first: what it brings fits the model as it was trained, and once.")
    architecture = checkpoint.architecture
    for one in passes:
        schemes = one.plan(architecture, schemes)
        cache_scales = one.cache_scales(architecture, cache_scales)
        architecture = one.reshaped(architecture)
    layout.check_together(schemes, cache_scales)
    embedding = architecture.embedding
    linears = {name: scheme for name, scheme in schemes.items() if name != embedding}
    problems = list(filter(None, [target.why_not_made(), *target.problems(architecture, linears)]))
    if embedding in schemes and not target.holds_quantized_embedding:
        problems.append("It holds no quantized embedding; leave out the pass embeddings, or take the target hf.")
    elif embedding in schemes:
        problems += target.embedding_problems(architecture, schemes[embedding])
    if cache_scales:
        problems += target.cache_problems(architecture, linears)
    if problems:
        raise InputError(f"{target.name} cannot take this: " + " ".join(problems), _remedy(checkpoint))
    return schemes


def check_pickles(passes: list[Pass], allowed: bool) -> None:
    """Refuse pickle files that passes would open.

    Raises:
        InputError: there is one, and the run does not allow it.
    """
    first = next((path for one in passes for path in one.pickles), None)
    if first is not None and not allowed:
        raise InputError(
            f"{first} is a pickle, which can run code when opened.", "Pass --allow-pickle if you trust its source."
        )


def check_values(checkpoint: Checkpoint, passes: list[Pass], schemes: Mapping[str, Scheme], target: Target) -> None:
    """See that the target can hold the numbers that no pass will change; `schemes` are those after all passes.

    Raises:
        InputError: it cannot.
    """
    rounded = {f"{layer}.weight" for layer in schemes}
    known = not any(one.changes_floats for one in passes)
    floats = [name for name in checkpoint.architecture.tensor_shapes() if known and name not in rounded]
    problems = list(target.value_problems(checkpoint, floats))
    if problems:
        raise InputError(f"{target.name} cannot hold this: " + " ".join(problems), _remedy(checkpoint))


def _remedy(checkpoint: Checkpoint) -> str | None:
    """What helps where a model that is quantized already does not fit."""
    if not checkpoint.schemes and not checkpoint.kv_cache:
        return None
    return "The model is quantized already; --requantize dequantizes it first, and rounds its weights a second time."


def step_key(one: Pass, checkpoint: Checkpoint, calibration: TokenSet | None, seed: int) -> str:
    """Digest of everything that decides the bytes of a step."""
    return digest_json(
        {
            "pass": one.key,
            "input": checkpoint.digest,
            "calibration": calibration.digest if calibration and Need.CALIBRATION in one.needs else None,
            "seed": seed,
            "code": code_version(type(one)),
        }
    )


def _earlier_rows(settings: RunSettings) -> dict[str, StepRecord]:
    if not settings.out.exists():
        return {}
    if not settings.resume:
        raise InputError(
            f"{settings.out} already exists.", "Choose another folder, or --resume to go on with the run in it."
        )
    if not (settings.out / ledgers.LEDGER_FILE).is_file():
        return {}
    return {row.key: row for row in ledgers.load_ledger(settings.out).steps if row.key}


@contextmanager
def _refusable(out: Path) -> Iterator[None]:
    """Make the output folder, and take it away again if the request is refused before any work on it."""
    made = not out.exists()
    (out / "steps").mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _finished_step(folder: Path, key: str) -> Checkpoint:
    try:
        found = json.loads((folder / STEP_FILE).read_text()).get("key")
    except (OSError, json.JSONDecodeError):
        found = None
    if found != key:
        raise InputError(
            f"{folder} was made from another input, other options or another version of the code.",
            "Remove it to compute it again, or choose another output folder.",
        )
    return Checkpoint.open(folder)


def _text_record(text: TokenSet) -> TextRecord:
    windows, length = text.tokens.shape
    documents = None if text.origins is None else len(text.origins.unique())
    return TextRecord(text.source, windows, length, text.digest, list(text.notes), documents)


def _size(checkpoint: Checkpoint) -> dict[str, Any]:
    bits = 8 * checkpoint.nbytes / checkpoint.architecture.parameters
    return {"size_bytes": checkpoint.nbytes, "bits_per_weight": bits}
