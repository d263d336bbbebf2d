"""What can be timed: a model folder or step in transformers, an artifact in its own runtime."""

from __future__ import annotations

from pathlib import Path

from compressor.architecture import Architecture, resolve
from compressor.audit import find_artifact
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.manifest import read_manifest
from compressor.measure.torch_session import TorchSession
from compressor.probe import open_session
from compressor.readback import artifact_config
from compressor.registry import make_target
from compressor.run_folder import LEDGER_FILE
from compressor.target import MANIFEST, Artifact, Session


def open_subject(path: Path) -> tuple[Session, Architecture]:
    """The session of a folder, and the shape of its model; of a run's folder, the artifact's.

    Raises:
        InputError: it is neither a model folder nor an artifact.
        RunError: it cannot be run here.
    """
    if (path / LEDGER_FILE).is_file() or (path / MANIFEST).is_file():
        root = find_artifact(path)
        manifest = read_manifest(root)
        target = make_target(manifest.target, manifest.options)
        return open_session(target, Artifact(root, target.name)), resolve(artifact_config(root))
    if not path.is_dir():
        raise InputError(f"{path} is no folder of a model, a step, an artifact or a run.")
    checkpoint = Checkpoint.open(path)
    return TorchSession.of(checkpoint), checkpoint.architecture
