"""Whether the artifact that a verdict would be about is the one that was measured."""

from __future__ import annotations

from pathlib import Path

from compressor.artifact import Artifact
from compressor.errors import InputError
from compressor.ledger import Ledger


def check_shipped(folder: Path, ledger: Ledger) -> None:
    """Compare the artifact in a run's folder with the digest in its ledger, which has an artifact.

    Raises:
        InputError: it is missing, or its files have another digest.
    """
    record, root = ledger.artifact, folder / "artifact"
    assert record is not None
    if not root.is_dir():
        raise InputError(
            f"The artifact is not at {root}. There is no verdict on what is not there.",
            "Keep the run's folder whole, or name a step with --row.",
        )
    found = Artifact(root, record.target).digest
    if found != record.digest:
        raise InputError(
            f"{root} is not the artifact that was measured: the SHA-256 of its files is {found[:12]}…, and "
            f"{record.digest[:12]}… in the ledger.",
            f"`llmc verify {folder}` says what differs.",
        )
