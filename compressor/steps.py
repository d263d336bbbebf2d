"""The folders that passes leave: made once for each pass and input, and used again by whoever needs the same."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compressor.checkpoint import Checkpoint
from compressor.code_version import code_version
from compressor.errors import InputError
from compressor.files import digest_json
from compressor.json_file import read_object
from compressor.ledger import Ledger, SensitivityRecord, StepRecord
from compressor.measure.memory import PeakMemory
from compressor.pass_ import Need, Pass, PassContext, Progress
from compressor.plan import Plan
from compressor.texts import TokenSet
from compressor.writer import STEP_FILE, check_content

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """The folder that steps lie in, and what decides their bytes beside the passes.

    Attributes:
        original: what rows are compared with.
        broken: what steps broke on, by their names: another target that needs one does not try it again.
    """

    folder: Path
    calibration: TokenSet | None
    original: Checkpoint
    seed: int
    progress: Progress
    broken: dict[str, Exception] = field(default_factory=dict)

    def key(self, one: Pass, checkpoint: Checkpoint, unrounded: Checkpoint | None) -> str:
        """Digest of everything that decides the bytes of a step.

        Args:
            unrounded: the run's model as it was before its linears were rounded; None if it came so.
        """
        calibration = self.calibration.digest if self.calibration and Need.CALIBRATION in one.needs else None
        decides = {
            "pass": one.key,
            "input": checkpoint.digest,
            "calibration": calibration,
            "seed": self.seed,
            "code": code_version(type(one)),
        }
        if Need.ORIGINAL in one.needs:
            decides["original"] = self.original.digest
        if Need.UNROUNDED in one.needs and unrounded is not None:
            decides["unrounded"] = unrounded.digest
        return digest_json(decides)

    def take(
        self, name: str, one: Pass, checkpoint: Checkpoint, unrounded: Checkpoint | None, row: StepRecord
    ) -> Checkpoint:
        """The step of this name: as it lies there, else made, which fills its row.

        Raises:
            InputError: another step lies there.
            Exception: the pass breaks, or broke before.
        """
        if name in self.broken:
            raise self.broken[name]
        folder = self.folder / name
        if folder.exists():
            LOG.info("%s is there already", folder)
            return _finished(folder, str(row.key))
        provenance = {"pass": one.name, "options": one.options(), "input": checkpoint.digest, "key": row.key}
        tokens = None if self.calibration is None else self.calibration.tokens
        row.notes.clear()
        row.losses.clear()
        context = PassContext(
            folder, provenance, tokens, self.seed, self.progress, row.notes, self.original, row.losses, unrounded
        )
        start = time.perf_counter()
        try:
            with PeakMemory() as peak:
                result = one.apply(checkpoint, context)
        except Exception as error:
            self.broken[name] = error
            raise
        row.seconds, row.peak_rss_bytes = time.perf_counter() - start, peak.bytes
        LOG.info("%s took %.1f s and %.0f MiB", one.spelled(), row.seconds, peak.bytes / 2**20)
        return result

    def sensitivity(self, name: str) -> list[SensitivityRecord]:
        """What the pass that made the step of this name found out before it rounded; nothing for most passes."""
        known = read_object(self.folder / name / STEP_FILE).get("sensitivity", [])
        return [SensitivityRecord(one["linears"], one["chosen"], one["divergence"]) for one in known]


def step_names(plans: Sequence[Plan]) -> list[list[str]]:
    """Names for the steps of each plan. Plans share steps as long as their passes are equal; where two steps would be
    called the same, the later one is called after its target too.
    """
    known: dict[tuple[str, ...], str] = {}
    names = []
    for plan in plans:
        keys = [one.key for one in plan.passes]
        for number, one in enumerate(plan.passes, start=1):
            name = f"{number:02}-{one.name}"
            taken = name in known.values()
            known.setdefault(tuple(keys[:number]), f"{name}-{plan.target.name}" if taken else name)
        names.append([known[tuple(keys[:number])] for number in range(1, len(keys) + 1)])
    return names


def _finished(folder: Path, key: str) -> Checkpoint:
    try:
        known = read_object(folder / STEP_FILE)
    except InputError:
        known = {}
    if known.get("key") != key:
        raise InputError(
            f"{folder} was made from another input, other options or another version of the code.",
            "Remove it to compute it again, or choose another output folder.",
        )
    return check_content(Checkpoint.open(folder), known)


def check_kept(folder: Path, names: Sequence[str], finished: Ledger | None) -> None:
    """See that a run which is gone on with has its steps, where it was whole before.

    Args:
        finished: its ledger; None where there is none yet.

    Raises:
        InputError: they were not kept.
    """
    if finished is None or finished.artifact is None or finished.recipe.get("steps", "keep") == "keep":
        return
    gone = [name for name in names if not (folder / name).is_dir()]
    if gone:
        raise InputError(
            f"The run in {folder.parent} is whole, and its step {gone[0]} was not kept "
            f"(--steps {finished.recipe['steps']}): there is nothing to go on from.",
            "Run it into another folder; --steps keep leaves what --resume and bisect need.",
        )


def clear(folder: Path, kept: str, names: Sequence[Sequence[str]]) -> None:
    """Remove the steps that were not to be kept, of runs that are whole.

    Args:
        kept: `keep`, `last` or `none`.
        names: of the steps of each run, in order.
    """
    if kept == "keep":
        return
    last = {steps[-1] for steps in names if steps} if kept == "last" else set()
    for step in folder.iterdir():
        if step.name not in last:
            shutil.rmtree(step)
