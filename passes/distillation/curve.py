"""The curve of losses: a line a step in a CSV file, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from compressor.files import whole_file

TABLE, PICTURE = "losses.csv", "losses.png"
HEADER = "step,loss"
SMOOTHING = 0.9  # of the line drawn through the losses


class Curve:
    """Writes `losses.csv`: starts with what is known, and gets a line a step."""

    def __init__(self, folder: Path, losses: Sequence[float]) -> None:
        self._path, self._count = folder / TABLE, len(losses)
        lines = [HEADER, *(_line(step, loss) for step, loss in enumerate(losses, start=1))]
        with whole_file(self._path) as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, loss: float) -> None:
        """The loss of the next step."""
        self._count += 1
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(self._count, loss) + "\n")


def read_curve(folder: Path) -> list[float]:
    """The losses in a folder's `losses.csv`, as they were; no half-written line, and none without the file."""
    path = folder / TABLE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    return [float(line.partition(",")[2]) for line in lines if line.endswith("\n")]


def draw(folder: Path, losses: Sequence[float], title: str, unit: str) -> bool:
    """Draw `losses.png`; False where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel=unit)
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, linewidth=0.8, alpha=0.4, label="step")
    axes.plot(steps, smoothed(losses), linewidth=1.6, label="running mean")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(folder / PICTURE) as path:
        figure.savefig(path, format="png", dpi=120)
    return True


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential running mean, without the pull of its start."""
    mean, weight, found = 0.0, 0.0, []
    for loss in losses:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        found.append(mean / weight)
    return found


def _line(step: int, loss: float) -> str:
    return f"{step},{loss!r}"
