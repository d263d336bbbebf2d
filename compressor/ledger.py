"""The ledger: what a run did and measured, row by row. The file `ledger.json` is its whole content."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.errors import InputError
from compressor.files import digest_json, write_json
from compressor.inside import inside
from compressor.measure.continuations import Continuation
from compressor.measure.latency import Latency
from compressor.measure.scores import LayerError, Quality
from compressor.measure.statistics import Estimate
from compressor.run_folder import LEDGER_FILE, ledger_file

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 3
READABLE = (1, 2, 3)  # what a version adds may be absent
SEAL = "digest"  # of the ledger in itself


@dataclass
class SamplesRecord:
    """The file with what was measured of every token of a row, or of every sample of a task.

    Attributes:
        path: below the run's folder.
        sha256: of the file's bytes.
        count: lines in it: predicted tokens, or samples of a task.
    """

    path: str
    sha256: str
    count: int


@dataclass
class TaskRecord:
    """Scores of a row on a task of the user's own data.

    Attributes:
        name: of the task.
        kind: `classification`, `generation` or `question-answering`.
        digest: of the prompts, the expected answers and the settings; scores of equal ones can be compared.
        runtime: what answered.
        metrics: of all samples, 0 to 1 and larger is better, with standard errors over samples.
        judged: metrics that are means of scores of single samples, which is what a gate can test.
        samples: where the answer to every sample is, and its scores; `count` is in samples.
        tokenizers: what cuts answers into words, by metric: `rouge`, `bleu` (a tokenizer of sacrebleu) and `f1`.
            Ledgers of earlier versions have none: there it was `rouge_score`, `13a` and `SQuAD`.
        broken: samples with a likelihood that is no number; they count as wrong.
    """

    name: str
    kind: str
    digest: str
    runtime: str
    metrics: dict[str, Estimate]
    judged: list[str]
    samples: SamplesRecord
    tokenizers: dict[str, str] = field(default_factory=dict)
    broken: int = 0


@dataclass
class SensitivityRecord:
    """What a pass that shares out bits knew of linears that get the same, before it rounded them.

    Attributes:
        linears: by full name.
        chosen: how they were rounded, one of the keys of `divergence`.
        divergence: what each way to round them was expected to cost, in nats a token.
    """

    linears: list[str]
    chosen: str
    divergence: dict[str, float]


@dataclass
class StepRecord:
    """One row: the original, a pass, a baseline in the target's runtime, or the artifact.

    Attributes:
        name: `original`, a pass as spelled on the command line, or a target.
        seconds: wall time of the work itself, measuring left out.
        peak_rss_bytes: peak resident memory of the process during it.
        size_bytes: bytes of the weights on disk; for an artifact, of the whole folder.
        bits_per_weight: 8 x bytes of the weight files / parameters.
        runtime: what latency was measured in, and quality too in rows of an artifact.
        not_run: why a measurement is missing.
        key: digest of everything that decides the step's bytes.
        measured_with: digest of what decides the measurements.
        samples: where the results of every token are that `quality` summarizes.
        losses: of every step of a pass that trains, in nats.
        zeros: share of the weights of the decoder's linears that are zero; of steps from a pass on that makes zeros.
        tasks: scores on tasks, which `llmc score` adds.
        layers: error of each decoder layer, where a pass rounded them.
        sensitivity: of groups of linears, where a pass measured it.
        continuations: what it writes after pieces of the evaluation text.
        bits_of: bits per weight of parts of the model: `decoder layers`, `embedding and head`.
    """

    name: str
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    runtime: str | None = None
    quality: Quality | None = None
    latency: list[Latency] = field(default_factory=list)
    not_run: str | None = None
    notes: list[str] = field(default_factory=list)
    key: str | None = None
    measured_with: str | None = None
    samples: SamplesRecord | None = None
    losses: list[float] = field(default_factory=list)
    zeros: float | None = None
    tasks: list[TaskRecord] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    sensitivity: list[SensitivityRecord] = field(default_factory=list)
    continuations: list[Continuation] = field(default_factory=list)
    bits_of: dict[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> Estimate | None:
        """On the evaluation text; None where nothing was measured."""
        return None if self.quality is None else self.quality.perplexity

    @property
    def kl(self) -> Estimate | None:
        """KL divergence from the original, in nats a token; None where nothing was measured."""
        return None if self.quality is None else self.quality.kl


@dataclass
class Verification:
    """The verdict of reading an artifact back: how many weights were compared, and which differed."""

    reader: str
    weights: int
    mismatches: list[str]


@dataclass
class ArtifactRecord:
    """What is deployed, the verdict on it, and the command that serves it."""

    target: str
    path: str
    size_bytes: int
    digest: str
    verified: Verification
    run: str


@dataclass
class TextRecord:
    """Tokens that were used: where from, how many, and their hash.

    Attributes:
        documents: how many documents the tokens are of; None for running text, which does not say where one ends.
    """

    source: str
    windows: int
    length: int
    digest: str
    notes: list[str] = field(default_factory=list)
    documents: int | None = None


@dataclass
class AuditRecord:
    """One thing that the auditor of calibration text looked at.

    Attributes:
        name: `tokens`, `duplicates`, `overlap`, `languages` or `chat template`.
        said: the outcome as a sentence.
        figures: what the sentence is about.
    """

    name: str
    outcome: Literal["ok", "warning", "not checked"]
    said: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ledger:
    """Everything about one run.

    Attributes:
        revision: the commit that a model of the Hugging Face hub was of.
        digest: SHA-256 of everything else in the file, as JSON with sorted keys. Ledgers of earlier versions have none.
    """

    model: str
    recipe: dict[str, Any]
    schema: int = SCHEMA
    environment: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, TextRecord] = field(default_factory=dict)
    audit: list[AuditRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    artifact: ArtifactRecord | None = None
    revision: str | None = None
    digest: str | None = None

    def __getitem__(self, name: str) -> StepRecord:
        """The row of a name; the last one, where several have it.

        Raises:
            KeyError: there is none.
        """
        for row in reversed(self.steps):
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(row.name for row in self.steps)}")

    def plain(self) -> dict[str, Any]:
        """The ledger as JSON values, with the digest of what it holds now; what the file holds."""
        value = finite(asdict(self))
        return {**value, SEAL: _digest(value)}

    def save(self, folder: Path) -> None:
        """Write `ledger.json` into a run's folder."""
        write_json(folder / LEDGER_FILE, self.plain())


def together(ledgers: Sequence[Ledger]) -> Ledger:
    """Runs of one model for several targets in one ledger, to be shown: each row once. It has no artifact."""
    if len(ledgers) == 1:
        return ledgers[0]
    steps = {row.key: row for one in ledgers for row in one.steps}
    warnings = dict.fromkeys(warning for one in ledgers for warning in one.warnings)
    texts = {role: text for one in ledgers for role, text in one.texts.items()}
    audit = next((one.audit for one in ledgers if one.audit), [])
    return replace(
        ledgers[0], texts=texts, audit=audit, warnings=list(warnings), steps=list(steps.values()), artifact=None
    )


def load_ledger(path: Path) -> Ledger:
    """Read a ledger file, or the one in a run's folder.

    Raises:
        InputError: there is none, it is of another schema, it is not what was written, or it names a file outside
            of its folder.
    """
    from pydantic import ValidationError

    file = ledger_file(path)
    try:
        content = file.read_bytes()
        ledger = _adapter().validate_json(content)
    except ValidationError as error:
        raise InputError(f"{file} is not a ledger: {error.errors()[0]['msg']}.") from error
    if ledger.schema not in READABLE:
        known = f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}"
        raise InputError(f"{file} has ledger schema {ledger.schema}; this version reads {known}.")
    if ledger.digest is not None and ledger.digest != _digest(json.loads(content)):
        raise InputError(
            f"{file} does not fit the digest of itself: it was changed or damaged after it was written.",
            "Take it from where it was kept, or measure again.",
        )
    for record in (one for row in ledger.steps for one in (row.samples, *(task.samples for task in row.tasks))):
        if record is not None:
            inside(file.parent, record.path, file)
    return ledger


@cache
def _adapter() -> TypeAdapter[Ledger]:
    from pydantic import TypeAdapter

    return TypeAdapter(Ledger)


def _digest(value: dict[str, Any]) -> str:
    return digest_json({key: item for key, item in value.items() if key != SEAL})


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity; a measurement that gave one is recorded as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
