"""The code version of a pass or target: a hash of the sources that decide what it writes."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from compressor.errors import RunError
from compressor.files import digest_files, digest_json

# Parts of the core that cannot change a checkpoint's bytes.
INERT = ("cli", "report", "measure", "ledger.py", "errors.py")


@cache
def code_version(kind: type) -> str:
    """SHA-256 over the sources of the class's top-level package, of calibration and of the core.

    Coarse on purpose: after an edit a step is computed anew, which costs minutes; a stale one would cost trust.
    """
    packages = {kind.__module__.partition(".")[0], "calibration", "compressor"}
    return digest_json({package: _package_digest(package) for package in packages})


def _package_digest(package: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RunError(f"The sources of the package {package} cannot be found.")
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return digest_files(origin.parent, [origin.name])
    files = sorted(path.relative_to(origin.parent) for path in origin.parent.rglob("*.py"))
    kept = [file.as_posix() for file in files if package != "compressor" or file.parts[0] not in INERT]
    return digest_files(origin.parent, kept)
