"""A run for Weights & Biases, written offline: `wandb sync` sends it, if anybody does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from compressor.errors import MissingExtra
from compressor.tracking.content import Content


def write(content: Content, folder: Path, project: str) -> Path:
    """Write an offline run below a folder; rows are steps. Returns the run's own folder.

    Raises:
        MissingExtra: wandb is not installed.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # which wandb sends by itself, and reads when it is imported
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb", "wandb", "Tracking in Weights & Biases") from error
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        mode="offline", console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True
    )
    config = {**content.parameters, **{f"tag.{key}": value for key, value in content.tags.items()}}
    with wandb.init(project=project, name=content.name, dir=folder, config=config, settings=settings) as run:
        for step, (name, values) in enumerate(content.rows):
            run.log({"row": name, **values}, step=step)
        for file in content.files:
            kept = shutil.copy(file, run.dir)  # a file elsewhere would only be linked
            run.save(kept, base_path=run.dir, policy="now")
        place = Path(run.dir).parent
    wandb.teardown()  # the process that writes the run ends with it, and all of it is on disk
    return place
