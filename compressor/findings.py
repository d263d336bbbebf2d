"""What checking an artifact found, check by check."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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

    @property
    def unchecked(self) -> list[str]:
        """Names of the checks that could not be made."""
        return [check.name for check in self.checks if check.not_run is not None]

    def plain(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {"intact": not self.findings, "unchecked": self.unchecked, **asdict(self)}
