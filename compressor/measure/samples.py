"""What was measured of every token, one parquet file a row of the ledger.

One line a predicted token, in the order of the text. Two rows are compared in pairs by these; that both were
measured on the same tokens can be seen in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import InputError
from compressor.files import digest_file, digest_json, whole_file
from compressor.measure.scores import TokenScores

if TYPE_CHECKING:
    import pyarrow

    from compressor.ledger import SamplesRecord

SAMPLES_FOLDER = "samples"
COLUMNS = ("window", "position", "document", "token", *(field.name for field in fields(TokenScores)))


def path_of(name: str, key: str) -> Path:
    """Where a row's samples lie below the run's folder: the same row has the same path when a run is resumed."""
    plain = re.sub(r"[^A-Za-z0-9.=_]+", "-", name).strip("-.")
    return Path(SAMPLES_FOLDER) / f"{plain[:80]}-{digest_json({'row': key})[:8]}.parquet"


def table(tokens: np.ndarray, origins: np.ndarray | None, scores: TokenScores) -> pyarrow.Table:
    """The samples as a table, one line a predicted token.

    Args:
        tokens: int64 [windows, length]; the first token of a window is not predicted and has no line.
        origins: the number of each token's document, [windows, length]; None where that is not known.
    """
    import pyarrow

    windows, length = tokens.shape
    window, position = np.mgrid[:windows, 1:length]
    known = {
        "window": window,
        "position": position,
        "document": None if origins is None else origins[:, 1:],
        "token": tokens[:, 1:],
    }
    columns: dict[str, Any] = {
        name: pyarrow.nulls(window.size, pyarrow.int32()) if values is None else values.astype(np.int32).ravel()
        for name, values in known.items()
    }
    columns |= {field.name: getattr(scores, field.name).ravel() for field in fields(TokenScores)}
    return pyarrow.table(columns)


def write(path: Path, samples: pyarrow.Table) -> str:
    """Write a table so that a reader never sees half of it; returns the SHA-256 of the file."""
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        parquet.write_table(samples, temporary, compression="zstd")
        return digest_file(temporary)


def is_intact(folder: Path, record: SamplesRecord) -> bool:
    """Whether the file of a record lies below a run's folder as it was written."""
    path = folder / record.path
    return path.is_file() and digest_file(path) == record.sha256


def read(folder: Path, record: SamplesRecord) -> dict[str, np.ndarray]:
    """The columns of a samples file, [tokens] each; `document` is -1 where it is not known.

    Raises:
        InputError: the file is missing, is not the one that the ledger names, or holds nothing.
    """
    return columns(folder, record, COLUMNS)


def columns(folder: Path, record: SamplesRecord, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of a samples file, [lines] each; -1 where a number is not known.

    Raises:
        InputError: as `read`.
    """
    from pyarrow import ArrowException, parquet

    path = folder / record.path
    if not path.is_file():
        raise InputError(f"The samples {path} are missing.", "They belong to the ledger: keep the run's folder whole.")
    if digest_file(path) != record.sha256:
        raise InputError(f"The samples {path} are not those that the ledger names: their SHA-256 is another.")
    try:
        found = parquet.read_table(path, columns=list(names))
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as samples: {str(error).splitlines()[0]}") from error
    if found.num_rows == 0:
        raise InputError(f"{path} holds no samples.")
    return {name: _plain(found.column(name)) for name in names}


def _plain(column: pyarrow.ChunkedArray) -> np.ndarray:
    return (column.fill_null(-1) if column.null_count else column).to_numpy()
