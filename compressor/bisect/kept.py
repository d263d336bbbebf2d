"""What a bisection has tried, in a folder below the run's until it ends: the same command goes on from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from compressor.checkpoint import Checkpoint
from compressor.code_version import code_version
from compressor.decoder import Decoder
from compressor.errors import InputError, Interrupted
from compressor.files import digest_json, whole_file
from compressor.measure.accuracy import Reference, TokenScores
from compressor.only_one import only_one

FOLDER = "bisect-trials"  # below the run's own


@contextmanager
def workplace(run: Path) -> Iterator[Path]:
    """The folder, which goes when all is done or the same command cannot go on, and stays where it may. Where a run's
    folder cannot be written, it is a temporary one, and never stays.

    Raises:
        InputError: another bisection of the run has it.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="llmc-") as scratch:
            yield Path(scratch)
        return
    with only_one(folder, run):
        try:
            yield folder
        except (InputError, Interrupted):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class KeptScores:
    """What models that are no rows of the run made of its evaluation text.

    Attributes:
        folder: where it lies, a file a model.
    """

    folder: Path
    reference: Reference

    def take(self, checkpoint: Checkpoint, make: Callable[[], TokenScores]) -> TokenScores:
        """The scores of a checkpoint: as they lie there, else made."""
        path = self.folder / f"scores-{self._key(checkpoint)[:16]}.npz"
        if path.is_file():
            with np.load(path) as kept:
                return TokenScores(**kept)
        scores = make()
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **asdict(scores))
        return scores

    def _key(self, checkpoint: Checkpoint) -> str:
        reference = self.reference
        return digest_json(
            {
                "checkpoint": checkpoint.digest,
                "original": reference.checkpoint.digest,
                "tokens": reference.tokens.tolist(),
                "code": code_version(Decoder),
            }
        )
