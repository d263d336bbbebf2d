"""The licence that a model folder names, in the front matter of its README as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from compressor import yaml_text

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
LONGEST = 1 << 16  # characters of a README that are looked at


@dataclass(frozen=True)
class Licence:
    """What is said of it; None where nothing is.

    Attributes:
        identifier: as the hub spells it, such as `apache-2.0`, or `other`.
        name: of a licence that has no identifier.
        link: where its text is.
    """

    identifier: str | None = None
    name: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, root: Path) -> Licence:
        """The licence that a model folder's README.md names."""
        try:
            with (root / "README.md").open(encoding="utf-8") as file:
                found = FRONT_MATTER.match(file.read(LONGEST))
            values = yaml_text.load(found[1]) if found else {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError):  # a README is for people, and may say anything
            return cls()
        if not isinstance(values, dict):
            return cls()
        keys = ("license", "license_name", "license_link")
        return cls(*(value if isinstance(value := values.get(key), str) else None for key in keys))
