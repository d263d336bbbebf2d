"""How far runs have come: passes, the artifact, and measuring each row are stages, each a share of the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

WHOLE = "whole run"  # what progress calls all of the stages, in percent


@dataclass
class Stages:
    """Tells progress of the stages of one or several runs.

    Attributes:
        work: of each stage of each run, in any unit.
    """

    progress: Callable[[str, int, int], None]
    work: Sequence[Sequence[float]]
    done: int = 0

    def begin(self, run: int) -> None:
        """The run of this number begins; what one before it did not get to is left out."""
        self.done = sum(map(len, self.work[:run]))
        self._tell()

    def advance(self) -> None:
        """A stage is over."""
        self.done += 1
        self._tell()

    def _tell(self) -> None:
        work = list(chain.from_iterable(self.work))
        self.progress(WHOLE, round(100 * sum(work[: self.done]) / sum(work)), 100)
