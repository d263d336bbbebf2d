"""Which versions of other packages llmc was made for: those that its own metadata asks for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

DISTRIBUTION = "llmc-compiler"


def unfit(package: str) -> str | None:
    """Why an installed package cannot be used, in a phrase: its version; None where it fits or is not installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        found, wanted = version(package), requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    for requirement in map(Requirement, wanted):
        named = canonicalize_name(requirement.name) == canonicalize_name(package)
        if named and requirement.specifier and not requirement.specifier.contains(found, prereleases=True):
            return f"{package} {found} is installed, and llmc works with {requirement.specifier}"
    return None
