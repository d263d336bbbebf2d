"""Files that a model brings stay in its folder: the names that its files give, and the links that lie in it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from compressor.errors import InputError

SNAPSHOTS, BLOBS = "snapshots", "blobs"  # of the Hugging Face cache, whose snapshots are links to its blobs
COMMIT = re.compile("[0-9a-f]{40}")  # as the snapshots are called
REMEDY = "Copy the file into the folder if you trust where it comes from."


def check_name(name: object, said_by: object) -> str:
    """The name of a file in a folder or below it, as the file `said_by` gives it.

    Raises:
        InputError: it is no such name on one of the systems that llmc runs on.
    """
    if not isinstance(name, str) or not _stays(name):
        raise InputError(f"{said_by} names a file outside of its folder: {name!r}.", "The file is damaged, or forged.")
    return name


def inside(folder: Path, name: object, said_by: object) -> Path:
    """The path of a file in `folder`, or below it, that the file `said_by` names.

    Raises:
        InputError: the name leads out, or what it names is a link that does.
    """
    path = folder / check_name(name, said_by)
    _check_link(path, folder)
    return path


def check_links(folder: Path) -> None:
    """See that what lies in a model's folder is that model's.

    Raises:
        InputError: a link leads out, other than to the blobs of the hub cache that the folder lies in; or something
            is neither a file nor a folder, and would be waited for.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            _check_link(path, folder)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is neither a file nor a folder.", "Remove it.")


def commit_of(root: Path) -> str | None:
    """The commit that a snapshot of the hub's cache, or a folder in one, is of; None of any other folder."""
    found = (one.name for one in (root, *root.parents) if one.parent.name == SNAPSHOTS)
    return next((name for name in found if COMMIT.fullmatch(name)), None)


def told_commit(root: Path) -> dict[str, str]:
    """The same, as a step file says of what it was made."""
    commit = commit_of(root)
    return {} if commit is None else {"commit": commit}


def _stays(name: str) -> bool:
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    return bool(parts) and "\0" not in name and not {"..", "/", "\\"} & parts and not PureWindowsPath(name).anchor


def _check_link(path: Path, folder: Path) -> None:
    try:
        target, homes = path.resolve(), _homes(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise InputError(f"{path} is a link that leads nowhere.", "Download the folder again.") from error
    if not any(target.is_relative_to(home) for home in homes):
        raise InputError(f"{path} leads out of its folder, to {target}.", REMEDY)


def _homes(folder: Path) -> list[Path]:
    """Where files of a resolved folder may lie."""
    above = [parent for parent in folder.parents if parent.name == SNAPSHOTS]
    return [folder, *(parent.parent / BLOBS for parent in above if parent.parent.name.startswith("models--"))]
