"""A folder that answers: a model, a step of a run, or an artifact in its own runtime."""

from __future__ import annotations

from pathlib import Path

from compressor.architecture import resolve
from compressor.audit import find_artifact
from compressor.manifest import read_manifest
from compressor.measure import BATCH_SIZE
from compressor.measure.answers import Answerer, CheckpointAnswerer, SessionAnswerer
from compressor.pass_ import Progress
from compressor.probe import open_session
from compressor.readback import artifact_config, artifact_tokenizer
from compressor.registry import make_target
from compressor.run_folder import LEDGER_FILE, runs_in
from compressor.source import open_model
from compressor.target import MANIFEST, Artifact
from compressor.tasks.scoring import Prompter
from compressor.tokenizer import load_tokenizer


def open_folder(
    path: Path, scratch: Path, progress: Progress, batch_size: int = BATCH_SIZE
) -> tuple[Answerer, Prompter]:
    """What answers for a folder, and what makes prompts for it. For a run's folder, its artifact does.

    Args:
        scratch: where a model that has to be converted goes.
        batch_size: of what is asked at once.

    Raises:
        InputError: it is neither a model nor an artifact.
        RunError: the artifact's runtime is not here.
    """
    if (path / LEDGER_FILE).is_file() or runs_in(path):
        path = find_artifact(path)
    if not (path / MANIFEST).is_file():
        checkpoint = open_model(str(path), scratch / "import", progress=progress).checkpoint
        prompter = Prompter.of(load_tokenizer(checkpoint.root), checkpoint.root, checkpoint.architecture)
        return CheckpointAnswerer(checkpoint, batch_size), prompter
    manifest = read_manifest(path)
    artifact = Artifact(path, manifest.target)
    prompter = Prompter.of(artifact_tokenizer(path), path, resolve(artifact_config(path)))
    session = open_session(make_target(manifest.target, manifest.options), artifact)
    return SessionAnswerer(session, batch_size), prompter
