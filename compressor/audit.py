"""Checks an artifact against its manifest, without the checkpoint that it was lowered from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import InputError, LlmcError, MissingExtra, RunError
from compressor.files import crc32_range, digest_file
from compressor.fingerprint import differing_parts, fingerprint
from compressor.ledger import one_of_the_runs_in
from compressor.manifest import OLD_SCHEMA, DamagedManifest, FileRecord, Manifest, read_manifest
from compressor.pass_ import Progress
from compressor.probe import compare, open_session
from compressor.registry import make_target
from compressor.target import MANIFEST, Artifact, Target

MIB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was recorded, and where: in which file, which stored tensor or weight."""

    what: str
    file: str | None = None
    tensor: str | None = None

    def __str__(self) -> str:
        place = ", ".join(filter(None, [self.file, self.tensor and f"tensor {self.tensor}"]))
        return f"{place}: {self.what}" if place else self.what


@dataclass
class Check:
    """One kind of check: how much was compared, and what differs.

    Attributes:
        passed: a phrase for what holds when nothing differs.
        not_run: why the check could not be made.
    """

    name: str
    passed: str = ""
    checked: int = 0
    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    not_run: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome of all checks of one artifact; the target and llmc's version are those in its manifest."""

    artifact: str
    target: str | None
    llmc: str | None
    checks: list[Check]

    @property
    def findings(self) -> list[Finding]:
        return [finding for check in self.checks for finding in check.findings]

    def plain(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {"intact": not self.findings, **asdict(self)}


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
    """Check the artifact in the folder `root`: its manifest, files, structure, weights and generation.

    Raises:
        InputError: its manifest is of a schema that this version does not know.
    """
    try:
        manifest = read_manifest(root)
    except DamagedManifest as error:
        return Verdict(str(root), None, None, [Check("manifest", findings=[Finding(error.reason, MANIFEST)])])
    files = _check_files(root, manifest, progress)
    content = _check_content(root, manifest, bool(files.findings), progress)
    return Verdict(str(root), manifest.target, manifest.llmc, [_check_manifest(manifest), files, *content])


def _check_manifest(manifest: Manifest) -> Check:
    check = Check("manifest", "as it was written", 1)
    if manifest.schema == OLD_SCHEMA:
        check.not_run = (
            "it is of an old schema, which has no digest of itself and records neither weights nor generation"
        )
    return check


# ---- files


def _check_files(root: Path, manifest: Manifest, progress: Progress) -> Check:
    present, recorded = set(Artifact(root, manifest.target).file_names), manifest.files
    total = sum((root / name).stat().st_size for name in present & recorded.keys())
    check = Check("files", f"with {total / MIB:.1f} MiB, as recorded", len(recorded))
    check.findings += [Finding("is missing", name) for name in sorted(recorded.keys() - present)]
    check.findings += [Finding("is not in the manifest", name) for name in sorted(present - recorded.keys())]
    hashed = 0

    def advance(count: int) -> None:
        nonlocal hashed
        hashed += count
        progress("hashing, MiB", hashed // MIB, total // MIB)

    for name, record in recorded.items():
        if name in present:
            check.findings += _file_findings(root, name, record, manifest, advance)
    return check


def _file_findings(
    root: Path, name: str, record: FileRecord, manifest: Manifest, advance: Callable[[int], None]
) -> list[Finding]:
    try:
        size = (root / name).stat().st_size
        if digest_file(root / name, advance) == record.sha256:
            return []
        found = _locate(root, name, manifest)
    except OSError as error:
        return [Finding(f"cannot be read ({error.strerror})", name)]
    if record.bytes not in (None, size):
        found.insert(0, Finding(f"has {size} bytes, and {record.bytes} were recorded", name))
    return found


def _locate(root: Path, name: str, manifest: Manifest) -> list[Finding]:
    """The tensors of a damaged file that are not as recorded; the file where it is none of them."""
    tensors = manifest.tensors.get(name, {})
    changed = [
        tensor
        for tensor, record in tensors.items()
        if crc32_range(root / name, record.start, record.end) != record.crc32
    ]
    if changed:
        return [Finding("is not as recorded", name, tensor) for tensor in changed]
    where = ", outside of its tensors" if tensors else ""
    return [Finding(f"is not as recorded{where}", name)]


# ---- what the files mean


def _check_content(root: Path, manifest: Manifest, damaged: bool, progress: Progress) -> list[Check]:
    try:
        target = make_target(manifest.target, manifest.options)
    except InputError as error:
        return [Check(name, not_run=str(error)) for name in ("structure", "weights", "generation")]
    return _Content(target, Artifact(root, target.name), manifest, damaged, progress).checks()


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
