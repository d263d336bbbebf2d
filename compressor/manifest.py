"""The manifest of an artifact: what its files, its weights and its answers were when it was made.

It carries a digest of itself and has one spelling, so that a changed byte of it is found too. That guards against
damage, not against somebody who writes a new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor import __version__
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.files import crc32_range, digest_json, json_text, write_json
from compressor.inside import check_name
from compressor.probe import Probe
from compressor.target import MANIFEST, Artifact, Target

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 2
SEAL = "digest"
OLD_SCHEMA = 1  # had digests of files and nothing else to compare with


class DamagedManifest(InputError):  # noqa: N818 -- reads better where it is raised
    """The manifest is not as it was written; `reason` goes on where its path left off."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}.")
        self.reason = reason


@dataclass(frozen=True)
class FileRecord:
    """One file; its size in bytes is not known of old manifests."""

    bytes: int | None
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """Bytes of a tensor in its file, and their CRC-32: the file's SHA-256 finds damage, this says where it is."""

    start: int
    end: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of an artifact where its checkpoint is not.

    Attributes:
        key: digest of everything that decided the artifact's bytes; `input`: of the checkpoint.
        schemes: layer to scheme, in words.
        files: path below the root to record.
        tensors: file to the tensors in it, by their names there.
        weights: parameter to the digest of each of its parts, as `read_back` gave them; None: not recorded.
        probe: what the runtime answered; None where it was not run, for the reason in `not_probed`.
        llmc: version that made the artifact.
    """

    target: str
    options: dict[str, Any]
    key: str
    input: str
    schemes: dict[str, str]
    files: dict[str, FileRecord]
    tensors: dict[str, dict[str, TensorRecord]]
    weights: dict[str, dict[str, str]] | None
    probe: Probe | None
    not_probed: str | None
    llmc: str | None = __version__
    schema: int = SCHEMA

    def write(self, root: Path) -> None:
        """Write the manifest into an artifact's folder, sealed."""
        value = asdict(self)
        write_json(root / MANIFEST, {**value, SEAL: digest_json(value)})

    @classmethod
    def describe(
        cls,
        target: Target,
        checkpoint: Checkpoint,
        artifact: Artifact,
        key: str,
        weights: dict[str, dict[str, str]],
        probe: Probe | str,
    ) -> Manifest:
        """The manifest of an artifact that was just made; `probe` may be the reason why there is none."""
        return cls(
            target=target.name,
            options=target.options(),
            key=key,
            input=checkpoint.digest,
            schemes={layer: str(scheme) for layer, scheme in checkpoint.schemes.items()},
            files={n: FileRecord((artifact.root / n).stat().st_size, d) for n, d in artifact.files.items()},
            tensors=_tensor_records(target, artifact),
            weights=weights,
            probe=probe if isinstance(probe, Probe) else None,
            not_probed=None if isinstance(probe, Probe) else probe,
        )


def read_manifest(root: Path) -> Manifest:
    """The manifest of the artifact in the folder `root`.

    Raises:
        DamagedManifest: it is not JSON, or not what was sealed.
        InputError: there is none, or this version does not know its schema.
    """
    from pydantic import ValidationError

    path = root / MANIFEST
    raw = _read_sealed(path)
    try:
        manifest = _adapter().validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is not a manifest: {place}: {first['msg']}.") from error
    for name in (*manifest.files, *manifest.tensors):
        check_name(name, path)
    return manifest


def _read_sealed(path: Path) -> dict[str, Any]:
    """The manifest's JSON without its seal, an old one in today's shape."""
    try:
        text = path.read_bytes()
        raw = json.loads(text)
    except FileNotFoundError as error:
        raise InputError(f"There is no manifest at {path}.") from error
    except OSError as error:
        raise DamagedManifest(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # what is not JSON, and what is not text
        raise DamagedManifest(path, f"is not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise DamagedManifest(path, "is not a manifest")
    if raw.get("schema") == OLD_SCHEMA and SEAL not in raw:
        return _in_todays_shape(raw)
    seal = raw.pop(SEAL, None)
    if seal != digest_json(raw) or json_text({**raw, SEAL: seal}).encode() != text:
        raise DamagedManifest(path, "does not fit the digest of itself")
    if raw.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has manifest schema {raw.get('schema')}; this version reads {OLD_SCHEMA} and {SCHEMA}.",
            "A newer llmc made the artifact; install that.",
        )
    return raw


@cache
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _in_todays_shape(raw: Mapping[str, Any]) -> dict[str, Any]:
    files = {name: {"bytes": None, "sha256": digest} for name, digest in raw.get("files", {}).items()}
    unknown = {"weights": None, "probe": None, "not_probed": "its manifest is an old one", "llmc": None}
    return {**raw, "files": files, "tensors": {}, **unknown}


def _tensor_records(target: Target, artifact: Artifact) -> dict[str, dict[str, TensorRecord]]:
    records: dict[str, dict[str, TensorRecord]] = {}
    for tensor in target.stored_tensors(artifact):
        checksum = crc32_range(artifact.root / tensor.file, tensor.start, tensor.end)
        records.setdefault(tensor.file, {})[tensor.name] = TensorRecord(tensor.start, tensor.end, checksum)
    return records
