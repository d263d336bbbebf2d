"""Activations that are gone through more than once: few in memory, many in a file that vanishes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from compressor.errors import RunError

KEPT_BYTES = 192 << 20  # in memory; beyond, all are in the file


class Spool:
    """Keeps batches as they go by, and gives them again as often as wanted.

    Args:
        nbytes: what all of them will take.
        folder: where the file is made, if one is needed.
        share: of the usual memory that they may take.
    """

    def __init__(self, nbytes: int, folder: Path, share: float = 1) -> None:
        # It is closed, and with that gone, when this object is.
        self._file: Any = None if nbytes <= share * KEPT_BYTES else TemporaryFile(dir=folder)  # noqa: SIM115
        self._kept: list[torch.Tensor] = []  # with a file, their shapes alone

    def keep(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The batches, each kept before it is handed on; called once."""
        for batch in batches:
            if self._file is None:
                self._kept.append(batch)
            else:
                self._file.write(_bytes(batch.contiguous()))
                self._kept.append(batch.to("meta"))
            yield batch

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self._file is None:
            yield from self._kept
            return
        self._file.seek(0)
        for shape in self._kept:
            batch = torch.empty_like(shape, device="cpu")
            if self._file.readinto(_bytes(batch)) != batch.nbytes:
                raise RunError("A file of activations came back shorter than it was written.", "Check the disk.")
            yield batch


def _bytes(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy()
