"""YAML files that people write: read as UTF-8, and what is wrong with one is said with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from compressor import yaml_text
from compressor.errors import InputError


def read_yaml(path: Path, called: str) -> tuple[Any, str]:
    """The values of a file, and its text.

    Args:
        called: what the file is, as a sentence begins: "The recipe".

    Raises:
        InputError: it cannot be read, or is not YAML; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{called} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{called} {path} cannot be read: it is not UTF-8 text.") from error
    try:
        return yaml_text.load(text), text
    except yaml.YAMLError as error:
        hint = "Indent with spaces; YAML takes no tabs." if "'\\t'" in (reason := _reason(error)) else None
        raise InputError(f"{called} {path} cannot be read: {reason}.", hint) from error


def _reason(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    said = problem or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}" if mark is not None else said
