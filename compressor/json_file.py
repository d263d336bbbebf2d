"""JSON that comes from elsewhere: whatever a file holds, it is a value or a sentence that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressor.errors import InputError

LARGEST = 64 << 20  # bytes: the index of the largest models takes a quarter; its values take many times as much


def read_object(path: Path, remedy: str | None = None) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: the hint of the error.

    Raises:
        InputError: the file cannot be read, is larger than 64 MiB, or is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).", remedy) from error
    if len(content) > LARGEST:
        raise InputError(f"{path} is larger than {LARGEST >> 20} MiB, which no such file is.", remedy)
    return parse_object(content, path, remedy)


def parse_object(content: bytes, where: object, remedy: str | None = None) -> dict[str, Any]:
    """The JSON object in bytes of the file, or the part of one, that is called `where`.

    Raises:
        InputError: there is none.
    """
    value = parse(content, where, remedy)
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object.", remedy)
    return value


def parse(content: bytes, where: object, remedy: str | None = None) -> Any:
    """The JSON value in bytes.

    Raises:
        InputError: they are no JSON.
    """
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not valid JSON (line {error.lineno}).", remedy) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text.", remedy) from error
    except RecursionError as error:
        raise InputError(f"{where} has values in values without end.", remedy) from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{where} is not valid JSON (a number is too long).", remedy) from error
