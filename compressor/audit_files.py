"""Checks the files of an artifact against its manifest, and that nothing else lies in its folder."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compressor.files import crc32_range, digest_file
from compressor.findings import Check, Finding
from compressor.manifest import FileRecord, Manifest
from compressor.pass_ import Progress
from compressor.target import MANIFEST

MIB = 1 << 20
EMPTY = "is an empty folder"
# Where a runtime is told what to load, and the keys by which it would load a program.
CODE_KEYS = {"genai_config.json": ("custom_ops_library",)}


def check_files(root: Path, manifest: Manifest, progress: Progress) -> Check:
    """Names, sizes and digests of all files. Only ordinary ones are opened: a pipe would never end."""
    odd = strange_entries(root)
    present = {name for name in _names(root, Path.is_file) if name != MANIFEST} - odd.keys()
    recorded = manifest.files.keys() - odd.keys()
    total = sum((root / name).stat().st_size for name in present & recorded)
    check = Check("files", f"with {total / MIB:.1f} MiB, as recorded", len(manifest.files))
    check.findings += [Finding(what, name) for name, what in odd.items()]
    check.findings += [Finding("is missing", name) for name in sorted(recorded - present)]
    check.findings += [Finding("is not in the manifest", name) for name in sorted(present - recorded)]
    hashed = 0

    def advance(count: int) -> None:
        nonlocal hashed
        hashed += count
        progress("hashing, MiB", hashed // MIB, total // MIB)

    for name, record in manifest.files.items():
        if name in present:
            check.findings += _file_findings(root, name, record, manifest, advance)
    check.findings += [Finding(what, name) for name in sorted(present) for what in _programs(root / name)]
    return check


def strange_entries(root: Path) -> dict[str, str]:
    """What no target writes, by its path below `root`: links, pipes, devices and empty folders."""
    found = {name: _strange(root / name) for name in _names(root)}
    return {name: what for name, what in found.items() if what is not None}


def _names(root: Path, wanted: Callable[[Path], bool] = lambda path: True) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if wanted(path))


def _strange(path: Path) -> str | None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "is a symbolic link"
    if stat.S_ISDIR(mode):
        return None if any(path.iterdir()) else EMPTY
    return None if stat.S_ISREG(mode) else "is no ordinary file"


def _programs(path: Path) -> list[str]:
    """Programs that a runtime would load because this file says so."""
    try:
        settings = json.loads(path.read_bytes()) if path.name in CODE_KEYS else None
    except (OSError, ValueError, RecursionError):  # other checks say so
        return []
    keys = sorted(set(_keys(settings)).intersection(CODE_KEYS.get(path.name, ())))
    return [f"has {key}: the runtime would load a program" for key in keys]


def _keys(value: Any) -> Iterator[str]:
    """Every key in a JSON value, at any depth."""
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(item)


def _file_findings(
    root: Path, name: str, record: FileRecord, manifest: Manifest, advance: Callable[[int], None]
) -> list[Finding]:
    try:
        size = (root / name).stat().st_size
        if digest_file(root / name, advance) == record.sha256:
            return []
        found = _locate(root, name, manifest)
    except OSError as error:
        return [Finding(f"cannot be read ({error.strerror})", name)]
    if record.bytes not in (None, size):
        found.insert(0, Finding(f"has {size} bytes, and {record.bytes} were recorded", name))
    return found


def _locate(root: Path, name: str, manifest: Manifest) -> list[Finding]:
    """The tensors of a damaged file that are not as recorded; the file where it is none of them."""
    tensors = manifest.tensors.get(name, {})
    changed = [
        tensor
        for tensor, record in tensors.items()
        if crc32_range(root / name, record.start, record.end) != record.crc32
    ]
    if changed:
        return [Finding("is not as recorded", name, tensor) for tensor in changed]
    where = ", outside of its tensors" if tensors else ""
    return [Finding(f"is not as recorded{where}", name)]
