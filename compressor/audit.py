"""Checks an artifact against its manifest, without the checkpoint that it was lowered from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from compressor.audit_files import EMPTY, check_files, strange_entries
from compressor.encoding import all_texts, differences
from compressor.errors import InputError, LlmcError, MissingExtra, RunError
from compressor.findings import Check, Finding, Verdict
from compressor.fingerprint import differing_parts, fingerprint
from compressor.manifest import OLD_SCHEMA, DamagedManifest, Manifest, read_manifest
from compressor.pass_ import Progress
from compressor.probe import Probe, compare, open_session
from compressor.readback import artifact_tokenizer
from compressor.registry import make_target
from compressor.run_folder import one_of_the_runs_in
from compressor.target import MANIFEST, Artifact, Target
from compressor.tokenizer import tokenizer_code

CONTENT = ("structure", "tokenizer", "weights", "generation")  # the checks of what the files mean


def find_artifact(path: Path) -> Path:
    """The artifact at `path`, or in the run's folder `path`.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    for root in (path, path / "artifact"):
        if (root / MANIFEST).is_file():
            return root
    hint = one_of_the_runs_in(path) or "Give the artifact's folder, or the folder of the run."
    raise InputError(f"{path} is no artifact: it has no {MANIFEST}.", hint)


def audit(root: Path, progress: Progress) -> Verdict:
    """Check the artifact in the folder `root`: its manifest, files, structure, tokenizer, weights and generation.

    Raises:
        InputError: its manifest is of a schema that this version does not know.
    """
    try:
        manifest = read_manifest(root)
    except DamagedManifest as error:
        return Verdict(str(root), None, None, [Check("manifest", findings=[Finding(error.reason, MANIFEST)])])
    files = check_files(root, manifest, progress)
    content = _check_content(root, manifest, bool(files.findings), progress)
    return Verdict(str(root), manifest.target, manifest.llmc, [_check_manifest(manifest), files, *content])


def _check_manifest(manifest: Manifest) -> Check:
    check = Check("manifest", "as it was written", 1)
    if manifest.schema == OLD_SCHEMA:
        check.not_run = (
            "it is of an old schema, which has no digest of itself and records neither weights nor generation"
        )
    return check


# ---- what the files mean


def _check_content(root: Path, manifest: Manifest, damaged: bool, progress: Progress) -> list[Check]:
    if any(what != EMPTY for what in strange_entries(root).values()):
        return _not_made("what is no ordinary file is not opened")
    try:
        target = make_target(manifest.target, manifest.options)
    except InputError as error:
        return _not_made(str(error))
    return _Content(target, Artifact(root, target.name), manifest, damaged, progress).checks()


def _not_made(reason: str) -> list[Check]:
    return [Check(name, not_run=reason) for name in CONTENT]


@dataclass(frozen=True)
class _Content:
    """The artifact as its target understands it; `damaged` says that its files are known not to be as recorded."""

    target: Target
    artifact: Artifact
    manifest: Manifest
    damaged: bool
    progress: Progress

    def checks(self) -> list[Check]:
        return [
            self._guarded(Check("structure"), self._check_structure, any_error=self.damaged),
            self._guarded(Check("tokenizer"), self._check_tokenizer, any_error=False),
            self._guarded(Check("weights"), self._check_weights, any_error=self.damaged),
            self._guarded(Check("generation"), self._check_generation, any_error=True),
        ]

    def _guarded(self, check: Check, work: Callable[[Check], None], any_error: bool) -> Check:
        """Run one check; what it raises is a finding. Damaged bytes and other runtimes raise what they like."""
        try:
            work(check)
        except MissingExtra as error:
            check.not_run = f"{error} {error.hint}"
        except LlmcError as error:
            check.findings.append(Finding(str(error)))
        except Exception as error:
            if not any_error:
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            check.findings.append(Finding(f"breaks with {type(error).__name__}: {reason}"))
        return check

    def _check_structure(self, check: Check) -> None:
        if self.target.rules is None:
            check.not_run = f"{self.target.name} has no rules of structure"
            return
        check.passed, check.checked = self.target.rules, 1
        check.findings += [Finding(sentence) for sentence in self.target.broken_rules(self.artifact)]

    def _check_tokenizer(self, check: Check) -> None:
        """See that the artifact's own tokenizer opens, and that the runtime makes the same tokens of text."""
        if self.damaged:
            check.not_run = "the files are damaged"
            return
        if code := tokenizer_code(self.artifact.root):
            check.not_run = f"it runs code of its own ({code})"
            return
        tokenizer, encode = artifact_tokenizer(self.artifact.root), self.target.encoder(self.artifact)
        check.passed = "opens"
        if encode is None:
            return
        texts = all_texts(tokenizer)
        check.passed, check.checked = "are read by the runtime as by transformers", len(texts)
        check.findings += [
            Finding(f"the runtime's own differs: {one}") for one in differences(encode, tokenizer, texts)
        ]

    def _check_weights(self, check: Check) -> None:
        if self.manifest.weights is None:
            check.not_run = "none are recorded"
            return
        check.passed = f"read back by {self.target.reader}, as recorded"
        missing = dict(self.manifest.weights)
        for name, weight in self.target.read_back(self.artifact):
            check.checked += 1
            recorded = missing.pop(name, None)
            if recorded is None:
                check.findings.append(Finding("is not in the manifest", tensor=name))
            elif parts := differing_parts(recorded, fingerprint(weight)):
                check.findings.append(Finding(f"its {' and '.join(parts)} are not as recorded", tensor=name))
            self.progress("reading back", check.checked, len(self.manifest.weights))
        check.findings += [Finding("is missing", tensor=name) for name in missing]

    def _check_generation(self, check: Check) -> None:
        """Ask the runtime again where it is here. What it makes of damaged files says nothing, and may crash it."""
        probe = self.manifest.probe
        if probe is None:
            check.not_run = f"none was recorded, since {self.manifest.not_probed}"
            return
        if self.damaged:
            check.not_run = "the files are damaged"
            return
        check.findings += self._lenient(probe)
        check.remarks = [f"recorded in {probe.runtime}"]  # for the case that another version breaks
        self.progress("running it", 0, 1)
        try:
            session = open_session(self.target, self.artifact)
        except RunError as error:
            check.not_run = str(error)
            return
        with closing(session):
            outcome = compare(probe, session)
        self.progress("running it", 1, 1)
        check.checked, check.remarks = len(probe.continuation), outcome.remarks
        close = f"logits at most {outcome.distance:.2g} apart, and {probe.tolerance.logits:g} is tolerated"
        check.passed = f"as recorded; {close}"
        check.findings += [Finding(difference) for difference in outcome.differences]

    def _lenient(self, probe: Probe) -> list[Finding]:
        """A tolerance that the target does not have would let anything pass."""
        own = self.target.tolerance(self.artifact).logits
        if probe.tolerance.logits <= own:
            return []
        said = f"the manifest lets logits be {probe.tolerance.logits:g} apart, and {self.target.name} allows {own:g}"
        return [Finding(said, MANIFEST)]
