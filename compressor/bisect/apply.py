"""The repaired run: in a folder of its own, from the steps that the repair leaves as they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from compressor.bisect.repair import Repair
from compressor.files import whole_folder
from compressor.gate.subject import Run
from compressor.ledger import STEPS_FOLDER
from compressor.pass_ import Progress
from compressor.pipeline import RunSettings, execute
from compressor.recipe import make_recipe
from compressor.texts import Texts


def apply(run: Run, repair: Repair, out: Path, texts: Texts, progress: Progress, model: str | None = None) -> Run:
    """Run the recipe of `run` with the repair, from the passes before the changed one as they are.

    Args:
        out: a folder that is not there yet.
        model: where the run's model is now; None is where it was.
    """
    for folder in _kept_steps(run, repair):
        (out / STEPS_FOLDER).mkdir(parents=True, exist_ok=True)
        with whole_folder(out / STEPS_FOLDER / folder.name) as place:
            shutil.copytree(folder, place, copy_function=_link, dirs_exist_ok=True)
    recipe = make_recipe(run.ledger.recipe | {"passes": repair.passes, "model": model or run.ledger.model})
    execute([recipe], RunSettings(out, resume=out.exists()), texts, progress)
    return Run.open(out)


def _kept_steps(run: Run, repair: Repair) -> list[Path]:
    """The folders of passes before the changed one; of a run for several targets they lie beside it."""
    places = (run.folder, run.folder.parent)
    found = [folder for place in places for folder in sorted((place / STEPS_FOLDER).glob("*-*")) if folder.is_dir()]
    names = {one.name: one for one in reversed(found)}
    return [folder for name, folder in sorted(names.items()) if int(name.partition("-")[0]) <= repair.at]


def _link(source: str, place: str) -> None:
    """Finished steps are never written to: a link is as good as a copy, where the file system has links."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
