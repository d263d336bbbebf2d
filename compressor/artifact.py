"""An artifact as files: what reads it without opening it imports this, and waits for no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compressor.files import digest_file, digest_json

MANIFEST = "llmc-manifest.json"


@dataclass(frozen=True)
class Artifact:
    """What is deployed: a folder in the runtime's own layout."""

    root: Path
    target: str

    @property
    def file_names(self) -> list[str]:
        """Path below the root of every file, the manifest left out."""
        paths = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(name for name in paths if name != MANIFEST)

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of every file by its path below the root, the manifest left out."""
        return {name: digest_file(self.root / name) for name in self.file_names}

    @property
    def digest(self) -> str:
        return digest_json(self.files)
