"""Tells the loss of quantizing from the fault of a runtime.

An artifact's weights, read back and run by llmc's own decoder, are held against the original, and every runtime of the
artifact against them: the first is what quantizing costs, the second is what a runtime does differently with the very
same integers.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import RunError
from compressor.manifest import read_manifest
from compressor.measure.accuracy import Quality, Reference, Report, checkpoint_scores
from compressor.measure.control import rounding_difference
from compressor.measure.difference import Difference, difference
from compressor.pass_ import Progress
from compressor.readback import ReadBack
from compressor.registry import make_target
from compressor.target import Artifact, Runtime, Tolerance

# A tolerance is for single logits of a short text. Over many positions their mean is far smaller than that, if
# nothing but rounding is between two runtimes, and the largest of them is larger.
MEAN_SHARE, LARGEST_SHARE = 0.5, 8.0
# Where it is known what a runtime rounds, the measure is what this does in llmc's own decoder; so many times it are
# explained, since sums that are rounded elsewhere hardly change the mean and do change the largest of thousands. Faults
# of every layer move the mean by 7 times as much or more, under NVFP4 inputs by 4: benchmarks/results/faults.md.
CONTROL_MEAN, CONTROL_LARGEST = 3.0, 8.0
SUMS = 1e-3  # of float32 in another order, which come on top


class Moved(Protocol):
    """How far answers are moved, as `Difference` says it."""

    @property
    def mean(self) -> float: ...

    @property
    def largest(self) -> float: ...


Verdict = Literal["agrees", "differs", "broke", "not run"]


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime next to what the artifact's weights mean.

    Attributes:
        reason: why it was not run, how it broke, or in what it differs.
        control: how far rounding alone moves the weights' answers, where it is known what the runtime rounds.
    """

    runtime: str
    verdict: Verdict
    tolerance: Tolerance
    difference: Difference | None = None
    reason: str | None = None
    control: Difference | None = None

    @property
    def at_fault(self) -> bool:
        return self.verdict in ("differs", "broke")


@dataclass
class ArtifactComparison:
    """All about one artifact.

    Attributes:
        schemes: how its layers are quantized, in words.
        loss: what its weights mean, next to the original; None where there is no original, for the reason in `no_loss`.
    """

    artifact: str
    target: str
    schemes: list[str]
    loss: Quality | None = None
    no_loss: str | None = None
    runtimes: list[RuntimeRow] = field(default_factory=list)

    @property
    def at_fault(self) -> bool:
        return any(row.at_fault for row in self.runtimes)

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {"at_fault": self.at_fault, **asdict(self)}


@dataclass(frozen=True)
class Comparer:
    """Compares artifacts on the same texts.

    Attributes:
        tokens: int64 [texts, length].
        original: what they were made from, or the reason why that is not known.
        scratch: folder for hidden states.
    """

    tokens: torch.Tensor
    original: Checkpoint | str
    scratch: Path
    progress: Progress

    def compare(self, root: Path) -> ArtifactComparison:
        """Hold the artifact in a folder against its original, and its runtimes against it."""
        manifest = read_manifest(root)
        target = make_target(manifest.target, manifest.options)
        artifact = Artifact(root, target.name)
        stored = ReadBack.of(target, artifact, self.progress)
        found = ArtifactComparison(str(root), target.name, sorted({*manifest.schemes.values()}))
        if isinstance(self.original, str):
            found.no_loss = self.original
        else:
            found.loss = self._loss(stored, self.original)
        meaning = self._reference(stored, "weights")
        found.runtimes += [self._row(runtime, meaning) for runtime in target.runtimes(artifact)]
        return found

    def _loss(self, stored: Checkpoint, original: Checkpoint) -> Quality:
        reference = self._reference(original, "original")
        return checkpoint_scores(stored, reference, self._report("judging its weights")).quality

    def _row(self, runtime: Runtime, meaning: Reference) -> RuntimeRow:
        name = runtime.called(runtime.name)
        if runtime.why_not is not None:
            return RuntimeRow(name, "not run", runtime.tolerance, reason=runtime.why_not)
        try:
            self.progress(f"opening {name}", 0, 1)
            with closing(runtime.open()) as session:
                self.progress(f"opening {name}", 1, 1)
                name = runtime.called(session.runtime)
                found = difference(session, meaning, self._report(f"asking {session.runtime}"))
        except RunError as error:
            return RuntimeRow(name, "broke", runtime.tolerance, reason=str(error))
        return judged(name, runtime, found, meaning, self._report(str(runtime.rounding)))

    def _reference(self, checkpoint: Checkpoint, name: str) -> Reference:
        self.scratch.mkdir(parents=True, exist_ok=True)
        store = self.scratch / f"{name}.npy"
        return Reference.make(checkpoint, self.tokens, store, self._report(f"running the {name}"))

    def _report(self, what: str) -> Report:
        return lambda done, total: self.progress(what, done, total)


def judged(name: str, runtime: Runtime, found: Difference, meaning: Reference, progress: Report) -> RuntimeRow:
    """The row of a runtime by its difference, next to what its rounding alone does where that is known."""
    rounding = runtime.rounding
    control = None if rounding is None else rounding_difference(meaning, rounding, progress)
    reason = fault(found, runtime.tolerance, control)
    return RuntimeRow(name, "differs" if reason else "agrees", runtime.tolerance, found, reason, control)


def fault(found: Difference, tolerance: Tolerance, control: Difference | None = None) -> str | None:
    """In what a runtime is farther from the reference than its way of computing explains; None: it is not.

    Args:
        control: the reference next to itself, rounding as the runtime does.
    """
    for what, explained in limits(tolerance, control).items():
        value = getattr(found, what)
        if not value <= explained:  # NaN is beyond too
            return f"the {what} difference is {value:.2g}, and {explained:.2g} is explained ({tolerance.reason})"
    return None


def limits(tolerance: Tolerance, control: Moved | None = None) -> dict[str, float]:
    """The mean and the largest difference that are explained, see `fault`."""
    if control is None:
        return {"mean": MEAN_SHARE * tolerance.logits, "largest": LARGEST_SHARE * tolerance.logits}
    return {
        "mean": CONTROL_MEAN * control.mean + MEAN_SHARE * SUMS,
        "largest": CONTROL_LARGEST * control.largest + LARGEST_SHARE * SUMS,
    }
