"""Folders that appear whole or not at all, and digests of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.errors import InputError, RunError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

TEMPORARY_PREFIX = ".llmc-tmp-"
CHUNK_BYTES = 1 << 20  # of one read: what hashing holds of a file


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the body ends well, and vanishes when it does not.

    Raises:
        InputError: `out` already exists.
        RunError: the disk is full.
    """
    if out.exists():
        raise InputError(f"{out} already exists.", "Choose another folder, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(out)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        temporary.rename(out)
        sync(out.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise RunError(
                f"The disk that holds {out.parent} is full; nothing half-written was left behind.",
                "Free some space and run again.",
            ) from error
        raise


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that nobody has and nobody can guess."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")


def sync(path: Path) -> None:
    """Have what a file holds, or which files a folder holds, on the disk before what comes next."""
    if os.name == "nt" and path.is_dir():  # which is no file there
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(root: Path) -> None:
    """Have a folder with all that it holds on the disk."""
    for path in (*root.rglob("*"), root):
        sync(path)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, from Python or from a library that wraps the operating system's, says the disk is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def remove_leftovers(parent: Path) -> None:
    """Remove temporary folders and files that a killed run left in `parent`."""
    for leftover in parent.glob(TEMPORARY_PREFIX + "*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the body ends well, and vanishes when it does not."""
    temporary = temporary_beside(path)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees half of it."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader never sees half of it."""
    write_whole(path, json_text(value))


def json_text(value: Any) -> str:
    """The one way in which JSON files are spelled here."""
    return json.dumps(value, indent=2) + "\n"


def digest_file(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of a file's bytes, in hex; `advance` is told how many bytes each read took."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def crc32_range(path: Path, start: int, end: int) -> int:
    """CRC-32 of a file's bytes from `start` to `end`, or to where the file ends before."""
    checksum, left = 0, end - start
    with path.open("rb") as file:
        file.seek(start)
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    return checksum


def digest_files(root: Path, names: Iterable[str]) -> str:
    """One SHA-256 over the names and bytes of files below `root`."""
    return digest_json({name: digest_file(root / name) for name in names})


def digest_json(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folder_bytes(root: Path) -> int:
    """Total size of all files below a folder."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def is_pointer(path: Path) -> bool:
    """Whether a file is what git-lfs leaves in the place of a large one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refuse_pointer(path: Path) -> None:
    """Refuse a file that stands for another one.

    Raises:
        InputError: it does.
    """
    if is_pointer(path):
        raise InputError(
            f"{path} is a git-lfs pointer, not the file itself.", "`git lfs pull` in its folder fetches it."
        )
