"""The repaired run: in a folder of its own, from the steps and the measurements that are there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from compressor.bisect.repair import Repair
from compressor.checkpoint import Checkpoint
from compressor.files import whole_folder
from compressor.gate.subject import ORIGINAL, Run
from compressor.ledger import StepRecord
from compressor.pass_ import Progress
from compressor.pipeline import RunSettings, execute
from compressor.recipe import Recipe
from compressor.run import BASE
from compressor.run_folder import STEPS_FOLDER
from compressor.texts import Texts

IMPORTED = "00-import"


def apply(run: Run, repair: Repair, out: Path, texts: Texts, progress: Progress, model: str | None = None) -> Run:
    """Run the recipe of a repair. No step that the run or the repair's trial has made is made again, and no row that
    the run has measured is measured again.

    Args:
        out: a folder that is not there yet.
        model: where the run's model is now; None is where it was.
    """
    assert repair.candidate.recipe is not None
    assert repair.trial is not None
    recipe = repair.candidate.recipe.model_copy(update={"model": model or run.ledger.model})
    with whole_folder(out) as place:
        _lay_out(run, recipe, repair.trial.made.steps, place)
    execute([recipe], RunSettings(out, resume=True), texts, progress)
    return Run.open(out)


def _lay_out(run: Run, recipe: Recipe, made: list[tuple[StepRecord, Checkpoint]], out: Path) -> None:
    """What a run that had got so far would have left."""
    (out / STEPS_FOLDER).mkdir()
    folders = {
        f"{number:02}-{one.name}": checkpoint.root
        for number, ((_, checkpoint), one) in enumerate(zip(made, recipe.build_passes(), strict=False), start=1)
    }
    imported = [place / STEPS_FOLDER / IMPORTED for place in (run.folder, run.folder.parent)]
    found = next((folder for folder in imported if folder.is_dir()), None)
    if found is not None:
        folders[IMPORTED] = found
    for name, folder in folders.items():
        shutil.copytree(folder, out / STEPS_FOLDER / name, copy_function=_link)
    rows = list(_rows(run, [row for row, _ in made]))
    for record in [record for row in rows for record in (row.samples, *(task.samples for task in row.tasks))]:
        if record is not None and (run.folder / record.path).is_file():
            (out / record.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / record.path, out / record.path)
    replace(run.ledger, recipe=recipe.written_out(), steps=rows, artifact=None).save(out)


def _rows(run: Run, made: list[StepRecord]) -> Iterator[StepRecord]:
    """The rows of the run that the repaired one has too, and those of steps that the trial has made."""
    known = {str(row.key): row for row in run.ledger.steps}
    keys = {str(row.key) for row in made}
    yield from (row for row in run.ledger.steps if row.name in (ORIGINAL, BASE) or str(row.key) in keys)
    yield from (row for row in made if str(row.key) not in known)


def _link(source: str, place: str) -> None:
    """Finished steps are never written to: a link is as good as a copy, where the file system has links."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
