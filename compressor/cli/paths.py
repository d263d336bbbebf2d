"""Paths on the command line: `~` is the home folder, and a missing run is said before anything is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class UserPath(click.Path):
    """A path, with `~` expanded."""

    def __init__(self, exists: bool = False) -> None:
        super().__init__(exists=exists, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(Path(value).expanduser(), param, ctx)


class RunPath(UserPath):
    """The folder of a run, or its ledger; `several`: or the folder that runs for several targets lie in."""

    def __init__(self, several: bool = False) -> None:
        super().__init__()
        self._several = several

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from compressor.run_folder import ledger_file, runs_in

        path = super().convert(value, param, ctx)
        if not (self._several and runs_in(path)):
            ledger_file(path)
        return path
