"""From the last checkpoint to an artifact: lowered, read back, and only then allowed to appear."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoint import Checkpoint
from compressor.code_version import code_version
from compressor.errors import InputError, RunError
from compressor.files import digest_file, digest_json, folder_bytes, whole_folder, write_json
from compressor.ledger import StepRecord, Verification
from compressor.measure.memory import PeakMemory
from compressor.pass_ import Progress
from compressor.target import MANIFEST, Artifact, Target
from compressor.verify import verify

WEIGHT_FILES = (".safetensors", ".onnx", ".data", ".gguf")


@dataclass(frozen=True)
class Lowering:
    """One target applied to one checkpoint."""

    target: Target
    checkpoint: Checkpoint
    progress: Progress

    @property
    def key(self) -> str:
        """Digest of everything that decides the artifact's bytes."""
        code = code_version(type(self.target))
        return digest_json({"target": self.target.spelled(), "input": self.checkpoint.digest, "code": code})

    def make(self, out: Path, row: StepRecord) -> Verification:
        """Write the artifact to `out` unless it is there already, verify it, and fill its ledger row.

        Raises:
            RunError: the artifact does not hold the checkpoint's numbers; nothing is kept.
            InputError: `out` holds another artifact.
        """
        if out.exists():
            self._check_finished(out)
            verified = self._verify(Artifact(out, self.target.name))
        else:
            verified = self._lower(out, row)
        row.size_bytes, row.bits_per_weight = folder_bytes(out), artifact_bits(out, self.checkpoint)
        return verified

    def _lower(self, out: Path, row: StepRecord) -> Verification:
        start = time.perf_counter()
        with PeakMemory() as peak, whole_folder(out) as folder:
            row.notes += self.target.lower(self.checkpoint, folder, self.progress)
            artifact = Artifact(folder, self.target.name)
            verified = self._verify(artifact)
            write_json(folder / MANIFEST, self._manifest(artifact))
        row.seconds, row.peak_rss_bytes = time.perf_counter() - start, peak.bytes
        return verified

    def _verify(self, artifact: Artifact) -> Verification:
        def report(done: int, total: int) -> None:
            self.progress("reading back", done, total)

        verified = verify(self.target, artifact, self.checkpoint, report)
        if verified.mismatches:
            count, first = len(verified.mismatches), verified.mismatches[0]
            raise RunError(
                f"Reading the artifact back found {count} of {verified.weights} weights changed, {first} first.",
                "It cannot be trusted and was not kept: a fault of the target, or of the disk.",
            )
        return verified

    def _manifest(self, artifact: Artifact) -> dict[str, Any]:
        return {
            "schema": 1,
            "target": self.target.name,
            "options": self.target.options(),
            "key": self.key,
            "input": self.checkpoint.digest,
            "schemes": {layer: str(scheme) for layer, scheme in self.checkpoint.schemes.items()},
            "files": artifact.files,
        }

    def _check_finished(self, out: Path) -> None:
        """The artifact that a resumed run left must be the one this run would make."""
        manifest = json.loads((out / MANIFEST).read_text())
        damaged = [name for name, digest in manifest["files"].items() if digest_file(out / name) != digest]
        if manifest["key"] != self.key or damaged:
            reason = (
                f"its file {damaged[0]} is damaged" if damaged else "it was made from another input or by other code"
            )
            raise InputError(f"{out} cannot be used again: {reason}.", "Remove it to lower it again.")


def artifact_bits(folder: Path, checkpoint: Checkpoint) -> float:
    """Bits per weight: 8 x bytes of the weight files / parameters of the model."""
    weights = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in WEIGHT_FILES)
    return 8 * weights / checkpoint.architecture.parameters
