"""Cholesky factors of second moments, in the memory of the half that they hold: LAPACK's would take the square."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from calibration.moments import SecondMoments


class Factor:
    """U, upper triangular with Uᵀ U = H, in strips of rows that begin at the diagonal."""

    def __init__(self, strips: SecondMoments) -> None:
        self._held = strips

    @classmethod
    def of(cls, moments: SecondMoments) -> Factor | None:
        """Factor second moments H, which are overwritten; None where they are not positive definite in float32."""
        for rows, strip in moments.strips():
            corner, rest = _corner(strip)
            own, failed = torch.linalg.cholesky_ex(corner, upper=True)
            if failed:
                return None
            corner.copy_(own)
            rest.copy_(torch.linalg.solve_triangular(own.mT, rest, upper=False))
            for others, other in moments.strips():
                if others.start >= rows.stop:
                    beyond = strip[:, others.start - rows.start :]
                    other.addmm_(beyond[:, : len(other)].T, beyond, alpha=-1)
        return cls(moments)

    @property
    def width(self) -> int:
        return self._held.width

    def diagonal(self) -> torch.Tensor:
        """A copy of it, float32 [width]."""
        return self._held.diagonal()

    def matrix(self) -> torch.Tensor:
        """All of it, float32 [width, width]."""
        return self._held.matrix().triu_()

    def strips_of(self, most: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Strips of at most so many rows, each with the row it begins with."""
        for rows, strip in self._held.strips():
            for start in range(0, len(strip), most):
                yield rows.start + start, strip[start : start + most, start:]

    def solve_(self, targets: torch.Tensor) -> None:
        """Multiply with H⁻¹ from the right, in place.

        Args:
            targets: float32 [rows, width].
        """
        strips = list(self._held.strips())
        for rows, strip in strips:
            corner, rest = _corner(strip)
            own = torch.linalg.solve_triangular(corner, targets[:, rows], upper=True, left=False)
            targets[:, rows] = own
            targets[:, rows.stop :].addmm_(own, rest, alpha=-1)
        for rows, strip in reversed(strips):
            corner, rest = _corner(strip)
            owed = targets[:, rows].addmm_(targets[:, rows.stop :], rest.T, alpha=-1)
            targets[:, rows] = torch.linalg.solve_triangular(corner.mT, owed, upper=False, left=False)


def _corner(strip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The square at the diagonal, and what lies to the right of it."""
    return strip[:, : len(strip)], strip[:, len(strip) :]
