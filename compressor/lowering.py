"""From the last checkpoint to an artifact: lowered, read back, and only then allowed to appear."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compressor.checkpoint import Checkpoint, Weight
from compressor.code_version import code_version
from compressor.decoder import Decoder
from compressor.encoding import all_texts, differences
from compressor.errors import InputError, MissingExtra, RunError
from compressor.files import digest_json, folder_bytes, whole_folder
from compressor.fingerprint import fingerprint
from compressor.ledger import StepRecord, Verification
from compressor.manifest import Manifest, read_manifest
from compressor.measure.memory import PeakMemory
from compressor.pass_ import Progress
from compressor.probe import Probe, open_session, record
from compressor.target import Artifact, Session, Target
from compressor.tokenizer import load_tokenizer, tokenizer_code
from compressor.verify import verify

LOG = logging.getLogger(__name__)
ENGINE = ".engine"  # what is deployed where there is one, whatever lies beside it
WEIGHT_FILES = (".safetensors", ".onnx", ".data", ".gguf")


@dataclass
class Lowering:
    """One target applied to one checkpoint.

    Attributes:
        not_probed: the reason why the artifact is not run when it is made.
        engine: what it was run in, still open, where that is slow to start and has read the files: see `take_engine`.
    """

    target: Target
    checkpoint: Checkpoint
    progress: Progress
    not_probed: str | None = None
    engine: Session | None = field(default=None, init=False)

    @property
    def key(self) -> str:
        """Digest of everything that decides the artifact's bytes."""
        code = code_version(type(self.target))
        return digest_json({"target": self.target.spelled(), "input": self.checkpoint.digest, "code": code})

    def make(self, out: Path, row: StepRecord) -> Verification:
        """Write the artifact to `out` unless it is there already, verify it, and fill its ledger row.

        Raises:
            RunError: the artifact does not hold the checkpoint's numbers; nothing is kept.
            InputError: `out` holds another artifact, or what the runtime computes are no numbers; nothing is kept.
        """
        if out.exists():
            self._check_finished(out)
            verified = self._verify(Artifact(out, self.target.name), {})
        else:
            verified = self._lower(out, row)
        row.size_bytes, row.bits_per_weight = folder_bytes(out), artifact_bits(out, self.checkpoint)
        return verified

    def take_engine(self) -> Session | None:
        """The engine that the artifact was run in, which the caller closes from now on; None where there is none."""
        engine, self.engine = self.engine, None
        return engine

    def close(self) -> None:
        """Close the engine unless it was taken."""
        engine = self.take_engine()
        if engine is not None:
            engine.close()

    def _lower(self, out: Path, row: StepRecord) -> Verification:
        weights: dict[str, dict[str, str]] = {}
        with whole_folder(out) as folder:
            artifact = Artifact(folder, self.target.name)
            start = time.perf_counter()
            with PeakMemory() as peak:
                row.notes += self.target.lower(self.checkpoint, folder, self.progress)
                verified = self._verify(artifact, weights)
            row.seconds, row.peak_rss_bytes = time.perf_counter() - start, peak.bytes
            row.notes += self._check_tokenizer(artifact)
            LOG.info("%s was written and read back in %.1f s", self.target.name, row.seconds)
            probe = self._probe(artifact)
            Manifest.describe(self.target, self.checkpoint, artifact, self.key, weights, probe).write(folder)
        return verified

    def _verify(self, artifact: Artifact, weights: dict[str, dict[str, str]]) -> Verification:
        """Read the artifact back against the checkpoint; `weights` is filled with the digests of what was read."""

        def report(done: int, total: int) -> None:
            self.progress("reading back", done, total)

        def keep(name: str, weight: Weight) -> None:
            weights[name] = fingerprint(weight)

        verified = verify(self.target, artifact, self.checkpoint, report, keep)
        if verified.mismatches:
            count, first = len(verified.mismatches), verified.mismatches[0]
            raise RunError(
                f"Reading the artifact back found {count} of {verified.weights} weights changed, {first} first.",
                "It cannot be trusted and was not kept: a fault of the target, or of the disk.",
            )
        return verified

    def _check_tokenizer(self, artifact: Artifact) -> list[str]:
        """See that the runtime makes the model's tokens of text; a note where it cannot be asked."""
        if tokenizer_code(self.checkpoint.root):
            return ["the tokenizer runs code of its own and was not compared"]
        try:
            encode = self.target.encoder(artifact)
        except MissingExtra as error:
            return [f"the runtime's tokenizer was not compared with the model's: {error}"]
        tokenizer = load_tokenizer(self.checkpoint.root)
        found = [] if encode is None else differences(encode, tokenizer, all_texts(tokenizer))
        if found:
            raise RunError(
                f"The artifact's tokenizer is not the model's: {found[0]}.",
                "It would be served otherwise than it was measured, and was not kept.",
            )
        return []

    def _probe(self, artifact: Artifact) -> Probe | str:
        """What the runtime answers here, or the reason why it is not asked."""
        if self.not_probed is not None:
            return self.not_probed
        self.progress("running the artifact", 0, 1)
        try:
            return self._recorded(artifact)
        finally:
            self.progress("running the artifact", 1, 1)

    def _recorded(self, artifact: Artifact) -> Probe | str:
        try:
            session = open_session(self.target, artifact)
        except RunError as error:
            return str(error)
        with ExitStack() as stack:
            stack.callback(session.close)
            probe = record(session, self.checkpoint.architecture, self.target.tolerance(artifact))
            if not probe.is_finite:
                raise self._overflow(probe)
            if self.target.engine is not None:
                self.engine = session
                stack.pop_all()
        return probe

    def _overflow(self, probe: Probe) -> InputError:
        """Why logits are no numbers: the model's own are none, or they are beyond what the artifact is computed in."""
        sentence = f"The logits of the artifact are not finite in {probe.runtime}; it was not kept."
        decoder, prompt = Decoder(self.checkpoint), torch.tensor([probe.prompt])
        if not bool(decoder.logits(decoder.final_states(prompt)[0], decoder.head()).isfinite().all()):
            return InputError(
                f"{sentence} Those of the model that it was made from are not finite either, computed in float32.",
                "Look at the model first: it diverged in training, or its weights are damaged.",
            )
        return InputError(
            f"{sentence} In float32 the same weights give finite ones: some number of this model is too large for the "
            f"dtype that {self.target.name} computes in. float16 ends at 65504.",
            "Choose a target that computes in float32 or bfloat16: onnx-fp32, onnx-int4, onnx-int8, or one for vLLM "
            "with dtype=bfloat16.",
        )

    def _check_finished(self, out: Path) -> None:
        """The artifact that a resumed run left must be the one this run would make."""
        manifest, files = read_manifest(out), Artifact(out, self.target.name).files
        damaged = [name for name, known in manifest.files.items() if files.get(name) != known.sha256]
        if manifest.key != self.key or damaged:
            reason = (
                f"its file {damaged[0]} is damaged" if damaged else "it was made from another input or by other code"
            )
            raise InputError(f"{out} cannot be used again: {reason}.", "Remove it to lower it again.")


def artifact_bits(folder: Path, checkpoint: Checkpoint) -> float:
    """Bits per weight: 8 x bytes of the weight files / parameters of the model."""
    sizes: Counter[bool] = Counter()
    for path in folder.rglob("*"):
        if path.suffix in (ENGINE, *WEIGHT_FILES):
            sizes[path.suffix == ENGINE] += path.stat().st_size
    return 8 * (sizes[True] or sizes[False]) / checkpoint.architecture.parameters
