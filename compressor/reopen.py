"""The models of a finished run, opened again: its original, its steps, its artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gate.subject import ORIGINAL, Run
from compressor.json_file import read_object
from compressor.ledger import StepRecord
from compressor.manifest import read_manifest
from compressor.pass_ import Progress
from compressor.plan import original_of
from compressor.probe import open_session
from compressor.recipe import make_recipe
from compressor.registry import make_target
from compressor.source import open_model
from compressor.target import Artifact, Session, Target
from compressor.writer import STEP_FILE


@dataclass(frozen=True)
class Reopened:
    """A run, and where a model that has to be converted goes.

    Attributes:
        model: where the run's model is now; None is where it was.
    """

    run: Run
    scratch: Path
    progress: Progress
    model: str | None = None

    def source(self) -> Checkpoint:
        """What the first pass was given.

        Raises:
            InputError: it is not there any more.
        """
        ledger = self.run.ledger
        model = self.model or ledger.model
        imported = next((folder for folder in self._step_folders() if folder.name == "00-import"), None)
        if imported is not None and self.model is None:
            return Checkpoint.open(imported)
        if Path(model).expanduser().exists():
            recipe = make_recipe(ledger.recipe)
            return open_model(
                model, self.scratch / "import", requantize=recipe.requantize, progress=self.progress
            ).checkpoint
        # A hub id is not fetched again.
        raise InputError(f"The original, {model}, is not here.", "--original says where it is.")

    def original(self) -> Checkpoint:
        """What everything of the run is compared with, its adapter merged if it has one.

        Raises:
            InputError: it is not there any more, or is another model now.
        """
        checkpoint = original_of(self.source(), make_recipe(self.run.ledger.recipe).build_passes())
        if checkpoint.digest != self.run.row(ORIGINAL).key:
            model = self.model or self.run.ledger.model
            raise InputError(f"{model} is not the model that {self.run.file} was made from: its digest is another.")
        return checkpoint

    def kept_steps(self) -> dict[str, Path]:
        """The folders that passes left, by the key of each: digest of everything that decides its bytes."""
        files = [folder / STEP_FILE for folder in self._step_folders()]
        return {str(read_object(file).get("key")): file.parent for file in files if file.is_file()}

    def step(self, row: StepRecord) -> Checkpoint:
        """The folder that a pass left.

        Raises:
            InputError: it is not there any more, or the row is of no pass.
        """
        folder = self.kept_steps().get(str(row.key))
        if folder is None:
            kept = self.run.ledger.recipe.get("steps", "keep")
            hint = None if kept == "keep" else f"The run was made with --steps {kept}; make it again with --steps keep."
            raise InputError(f"{row.name!r} of {self.run.file} has no folder that could be opened again.", hint)
        return Checkpoint.open(folder)

    def is_artifact(self, row: StepRecord) -> bool:
        """Whether a row is that of the artifact as it ships."""
        return self.run.is_artifact(row)

    def target(self) -> tuple[Target, Artifact]:
        """The artifact, and its target with the options that it was made with."""
        root = self.run.folder / "artifact"
        manifest = read_manifest(root)
        return make_target(manifest.target, manifest.options), Artifact(root, manifest.target)

    def session(self) -> Session:
        """The artifact in its runtime.

        Raises:
            RunError: the runtime is not here.
        """
        return open_session(*self.target())

    def judged(self) -> StepRecord:
        """The artifact's row where its runtime is here, else that of the last step.

        Raises:
            InputError: the run has neither.
        """
        rows = self.run.ledger.steps
        if len(rows) < 2:
            raise InputError(f"{self.run.file} has nothing but the original.")
        if self.is_artifact(rows[-1]) and self.target()[0].why_not_run() is None:
            return rows[-1]
        steps = [row for row in rows[1:] if not self.is_artifact(row) and ", " not in row.name]
        return steps[-1] if steps else rows[-1]

    def _step_folders(self) -> list[Path]:
        """Those of the run; of a run for several targets they lie beside it."""
        places = (self.run.folder, self.run.folder.parent)
        return [folder for place in places for folder in sorted((place / "steps").glob("*")) if folder.is_dir()]
