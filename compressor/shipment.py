"""The end of a run: the artifact with the script that serves it, and its rows in its own runtime."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.earlier import EarlierRows
from compressor.errors import RunError
from compressor.evaluator import Evaluator
from compressor.files import folder_bytes, whole_folder, write_whole
from compressor.ledger import ArtifactRecord, StepRecord
from compressor.lowering import Lowering, artifact_bits
from compressor.registry import make_target
from compressor.run_script import run_script
from compressor.target import Artifact, Session, Target


@dataclass
class Shipment:
    """One target's artifact of one checkpoint.

    Attributes:
        final: what is shipped.
        evaluator: of the run, whose folder the artifact lies in.
    """

    target: Target
    final: Checkpoint
    evaluator: Evaluator
    earlier: EarlierRows
    shipped: StepRecord = field(init=False)  # the artifact's own row, always the ledger's last

    def __post_init__(self) -> None:
        self._lowering = Lowering(self.target, self.final, self._progress)
        self._artifact = Artifact(self.evaluator.out / "artifact", self.target.name)
        self.shipped = self._row(self.target.name)

    def make(self) -> ArtifactRecord:
        """Make and verify the artifact, unless it is there already, and the script beside it."""
        out = self._artifact.root
        verified = self._lowering.make(out, self.shipped)
        # A format that is one file has its configuration inside, and is served by the same shape as the checkpoint.
        config = read_config(out) if (out / "config.json").is_file() else self.final.config
        script = out.with_name("run.sh")
        write_whole(script, run_script(self.target.run_command(out.name, config)))
        script.chmod(0o755)
        run = self.target.run_command(str(out), config)
        return ArtifactRecord(self.target.name, str(out), folder_bytes(out), self._artifact.digest, verified, run)

    def close(self) -> None:
        """Close what is still open of making the artifact."""
        self._lowering.close()

    def measure(self) -> list[StepRecord]:
        """Rows of the artifact in its own runtime, beside the original in the same runtime; its own row comes last."""
        reason = self.target.why_not_run() if self.evaluator.standard.enabled else "measuring was switched off"
        if reason is not None:
            self.shipped.not_run = reason
            return [self.shipped]
        rows = self._rows()
        if not all(self.evaluator.has_measured(row) for row in rows):
            try:
                self._run(rows)
            except RunError as error:  # the artifact is made and verified; only running it here failed
                self.shipped.not_run = str(error)
        return rows

    def _progress(self, what: str, done: int, total: int) -> None:
        self.evaluator.standard.progress(f"{self.target.name}: {what}", done, total)

    def _rows(self) -> list[StepRecord]:
        baseline = [self._row(f"{self.target.baseline}, original")] if self.target.baseline else []
        others = [self._row(f"{self.target.name}, {one.label}") for one in self.target.variants[:-1]]
        return [*baseline, *others, self.shipped]

    def _row(self, name: str) -> StepRecord:
        """The row of this name, as an earlier run of the same artifact left it if there was one."""
        return self.earlier.take(StepRecord(name, key=f"{self._lowering.key} {name}"))

    def _run(self, rows: list[StepRecord]) -> None:
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            if self.target.baseline is not None:
                sessions[rows[0].name] = self._open_baseline(rows[0])
            for row, variant in zip(rows[-len(self.target.variants) :], self.target.variants, strict=True):
                engine = self._lowering.take_engine() if row is self.shipped else None
                sessions[row.name] = engine or self.target.open(self._artifact, **variant.options)
            for session in sessions.values():
                stack.callback(session.close)
            self.evaluator.measure_sessions(sessions, {row.name: row for row in rows})

    def _open_baseline(self, row: StepRecord) -> Session:
        """The original in the target's own runtime, unquantized."""
        original, target = self.evaluator.standard.original, make_target(str(self.target.baseline), {})
        folder = self.evaluator.standard.scratch / target.name
        if not folder.exists():  # a run for another target beside this one may have made it
            with whole_folder(folder) as temporary:
                target.lower(original, temporary, self._progress)
        row.size_bytes, row.bits_per_weight = folder_bytes(folder), artifact_bits(folder, original)
        return target.open(Artifact(folder, target.name))
