"""Where the parts of a run's folder lie. Imports nothing heavy, so that a missing run is said at once."""

from __future__ import annotations

from pathlib import Path

from compressor.errors import InputError

LEDGER_FILE = "ledger.json"
STEPS_FOLDER = "steps"
NO_RUN = "Give the folder that `llmc compress` made."
OURS = ".llmc-"  # how names of locks and temporary files begin


def holds_run(folder: Path) -> bool:
    """Whether runs lie in this folder, whole or interrupted."""
    return (folder / STEPS_FOLDER).is_dir() or (folder / LEDGER_FILE).is_file()


def runs_in(folder: Path) -> list[Path]:
    """The runs for several targets that lie in this folder beside their steps, by name; none in that of one run."""
    if not (folder / STEPS_FOLDER).is_dir() or (folder / LEDGER_FILE).is_file():
        return []
    return sorted(path.parent for path in folder.glob(f"*/{LEDGER_FILE}"))


def one_of_the_runs_in(folder: Path) -> str | None:
    """The hint where one run is wanted and the folder holds several."""
    names = ", ".join(map(str, runs_in(folder)))
    return f"Give one of the runs in it: {names}." if names else None


def ledger_file(path: Path) -> Path:
    """The ledger of a run, given by its folder or by the ledger itself.

    Raises:
        InputError: there is none.
    """
    file = path / LEDGER_FILE if path.is_dir() else path
    if not file.exists():
        raise InputError(f"There is no ledger at {file}.", one_of_the_runs_in(path) or NO_RUN)
    return file
