"""The losses of passes that train, as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from compressor.ledger import Ledger
from compressor.report import charts
from compressor.report.figures import Figure
from compressor.report.numbers import number
from compressor.report.svg import NARROW, Axis, chart, tag, text

POINTS = 160  # of the thin line: more steps are drawn as means of neighbours
SHARE = 0.1  # of all steps, over which the strong line is a mean
LEFT, TOP, BOTTOM = 46, 24, 180  # pixels of the drawing's edges

CAPTION = (
    "Thin: the loss of every step, or of neighbouring steps together where there are many. Strong: the mean of the "
    "tenth of all steps that ends there."
)


def losses(ledger: Ledger) -> list[Figure]:
    """A curve for each row that was trained for at least two steps."""
    return [
        Figure.of(curve, title, row.losses, caption=CAPTION)
        for row in ledger.steps
        if len(row.losses) > 1 and (title := f"Training loss, {row.name}")
    ]


def curve(title: str, values: Sequence[float], width: float = NARROW) -> Markup:
    """Losses over steps, in nats; what is no finite number is left out."""
    kept = np.array([(step, value) for step, value in enumerate(values, start=1) if math.isfinite(value)])
    if not len(kept):
        return chart(
            title, "No loss is a finite number.", (width, TOP), [text(2, 14, "no loss is a finite number", "axis")]
        )
    steps, known = kept.T
    mean = _running_mean(known)
    thin = [(part[:, 0].mean(), part[:, 1].mean()) for part in np.array_split(kept, min(POINTS, len(kept)))]
    every = max(1, len(known) // POINTS)
    strong = [*zip(steps[::every], mean[::every], strict=True), (steps[-1], mean[-1])]
    right = width - 18
    x = Axis(1, max(len(values), 2), LEFT, right)
    y = Axis.over([value for _, value in (*thin, *strong)], BOTTOM, TOP)
    parts = charts.upwards(y, LEFT, right)
    parts += [text(at, BOTTOM + 15, said, "tick", "middle") for at, said in x.ticks() if said.isdigit()]
    parts += [text((LEFT + right) / 2, BOTTOM + 32, "step", "axis", "middle"), text(2, 14, "loss in nats", "axis")]
    for points, name in ((thin, "each"), (strong, "mean")):
        path = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in points)
        parts.append(tag("polyline", points=path, class_=name))
    said = f"{len(values)} steps; loss {number(known[0])} at first, {number(mean[-1])} over the last tenth"
    lost = len(values) - len(known)
    return chart(title, f"{said}; {lost} are no finite numbers" if lost else said, (width, BOTTOM + 40), parts)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and those before it in a tenth of all, or as many as there are."""
    width = max(1, round(SHARE * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
