"""JSON lines, each with its number, so that what is wrong with one can be said of that line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.errors import InputError


def json_lines(file: Path, *, skip_empty: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and object of each line.

    Raises:
        InputError: a line is not a JSON object in UTF-8, or is empty and not to be skipped.
    """
    try:
        lines = file.open("rb")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from error
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _object(line, f"{file}:{number}")
            elif not skip_empty:
                raise InputError(f"{file}:{number} is an empty line.", "Every line is one sample; remove it.")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON in UTF-8.") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object.")
    if b"\\u" in line:  # the only way for one to get there
        check_characters(json.dumps(value, ensure_ascii=False), where)
    return value


def check_characters(text: str, where: str) -> None:
    """Refuse a half of a character, which JSON can spell and no tokenizer takes.

    Raises:
        InputError: there is one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"{where} holds {half}, which is half of a character (a lone surrogate).",
            "Write the character whole, or leave it out.",
        ) from error
