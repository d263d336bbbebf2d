"""How to run, as opposed to what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunSettings:
    """How to run: nothing here changes a byte of the result."""

    out: Path
    resume: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
