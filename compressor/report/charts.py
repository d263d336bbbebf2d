"""The charts of a report, as SVG. Each takes plain values; what they mean is decided by `compressor.report.figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from compressor.measure.statistics import Estimate
from compressor.report.svg import WIDTH, Axis, chart, line, number, tag, text
from compressor.report.tables import estimate

CONFIDENCE = 1.96  # standard errors on each side of an interval that holds the truth 95 times of 100
LABELS = 132  # pixels for names
ROW = 24  # pixels of a named row
LEAST_GAP = 14  # between the baselines of two labels


NOWHERE = Estimate(0.0, None)  # on an axis that a chart does not have


@dataclass(frozen=True)
class Mark:
    """Something measured.

    Attributes:
        kind: class of the page's style: `original`, `step`, `artifact`, or `run1` to `run6`.
    """

    label: str
    kind: str
    y: Estimate
    x: Estimate = NOWHERE


def _reach(value: Estimate) -> tuple[float, float]:
    error = CONFIDENCE * (value.stderr or 0.0)
    return value.value - error, value.value + error


def _ends(values: Sequence[Estimate]) -> list[float]:
    return [end for value in values for end in _reach(value)]


def _shown(value: Estimate, axis: Axis) -> str:
    """To as many digits as its error leaves; 0 where the axis shows no more than that."""
    if abs(value.value) < 1e-4 * (axis.high - axis.low):
        return "0"
    return estimate(value).partition(" ")[0]


def _dot(x: float, y: float, mark: Mark) -> Markup:
    """Originals are diamonds, artifacts squares, the rest circles: colour is not all that tells them apart."""
    name, title = f"mark {mark.kind}", tag("title", mark.label)
    if mark.kind == "original":
        corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
        return tag("polygon", title, points=corners, class_=name)
    if mark.kind == "artifact":
        return tag("rect", title, x=x - 5, y=y - 5, width=10, height=10, class_=name)
    return tag("circle", title, cx=x, cy=y, r=5, class_=name)


def intervals(title: str, marks: Sequence[Mark]) -> Markup:
    """A row a mark, each with its 95% interval."""
    axis = Axis.over(_ends([mark.y for mark in marks]), LABELS + 8, WIDTH - 62)
    bottom = 8 + ROW * len(marks)
    parts = [line(axis.at(tick), 4, axis.at(tick), bottom, "grid") for tick in axis.ticks(3)]
    parts += [text(axis.at(tick), bottom + 14, number(tick), "tick", "middle") for tick in axis.ticks(3)]
    for index, mark in enumerate(marks):
        y = 8 + ROW * (index + 0.5)
        low, high = _reach(mark.y)
        parts += [
            text(0, y + 4, mark.label, "label", room=LABELS),
            line(axis.at(low), y, axis.at(high), y, f"error {mark.kind}"),
            _dot(axis.at(mark.y.value), y, mark),
            text(WIDTH, y + 4, _shown(mark.y, axis), "value", "end"),
        ]
    said = "; ".join(f"{mark.label} {estimate(mark.y)}" for mark in marks)
    return chart(title, said, bottom + 22, parts)


def scatter(title: str, marks: Sequence[Mark], axes: tuple[str, str], front: Sequence[Mark] = ()) -> Markup:
    """One value against another, with 95% intervals of both, and a line through the marks of a front.

    Args:
        axes: what x and y are, with their units.
    """
    right, bottom = WIDTH - LABELS - 14, 226
    x = Axis.over(_ends([mark.x for mark in marks]), 46, right)
    y = Axis.over(_ends([mark.y for mark in marks]), bottom, 26)
    parts = [line(46, y.at(tick), right, y.at(tick), "grid") for tick in y.ticks()]
    parts += [text(40, y.at(tick) + 4, number(tick), "tick", "end") for tick in y.ticks()]
    parts += [line(x.at(tick), 26, x.at(tick), bottom, "grid") for tick in x.ticks(3)]
    parts += [text(x.at(tick), bottom + 15, number(tick), "tick", "middle") for tick in x.ticks(3)]
    parts += [text((46 + right) / 2, bottom + 32, axes[0], "axis", "middle"), text(2, 14, axes[1], "axis")]
    if len(front) > 1:
        path = " ".join(f"{x.at(mark.x.value):.1f},{y.at(mark.y.value):.1f}" for mark in front)
        parts.append(tag("polyline", points=path, class_="front"))
    for mark, label in zip(marks, _apart([y.at(mark.y.value) for mark in marks], 30, bottom), strict=True):
        across, up = x.at(mark.x.value), y.at(mark.y.value)
        (left, far), (low, high) = map(x.at, _reach(mark.x)), map(y.at, _reach(mark.y))
        parts += [
            line(across, up, right + 10, label, "leader"),
            line(left, up, far, up, f"error {mark.kind}"),
            line(across, low, across, high, f"error {mark.kind}"),
            _dot(across, up, mark),
            text(right + 14, label + 4, mark.label, "label", room=LABELS),
        ]
    said = "; ".join(f"{mark.label}: {number(mark.x.value)}, {estimate(mark.y)}" for mark in marks)
    return chart(title, f"{axes[1]} against {axes[0]}. {said}", bottom + 40, parts)


def _apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights for labels near those that are wanted, no two closer than LEAST_GAP where there is room."""
    gap = min(LEAST_GAP, (bottom - top) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed, last = list(wanted), top - gap
    for index in order:
        placed[index] = last = max(wanted[index], last + gap)
    last = bottom + gap
    for index in reversed(order):
        placed[index] = last = min(placed[index], last - gap)
    return placed


def distributions(title: str, rows: Sequence[tuple[Mark, Sequence[float]]], unit: str) -> Markup:
    """Every single observation of each row, with its median."""
    values = [value for _, taken in rows for value in taken]
    axis = Axis.over(values, LABELS + 8, WIDTH - 66, zero=True)
    bottom = 8 + ROW * len(rows)
    parts = [line(axis.at(tick), 4, axis.at(tick), bottom, "grid") for tick in axis.ticks(3)]
    parts += [text(axis.at(tick), bottom + 14, number(tick), "tick", "middle") for tick in axis.ticks(3)]
    said = []
    for index, (mark, taken) in enumerate(rows):
        y, middle = 8 + ROW * (index + 0.5), float(np.median(taken))
        parts += [
            text(0, y + 4, mark.label, "label", room=LABELS),
            line(axis.at(min(taken)), y, axis.at(max(taken)), y, "spread"),
            *(tag("circle", cx=axis.at(value), cy=y, r=3.5, class_=f"seen {mark.kind}") for value in taken),
            line(axis.at(middle), y - 8, axis.at(middle), y + 8, "median"),
            text(WIDTH, y + 4, f"{number(middle)} {unit}", "value", "end"),
        ]
        said.append(f"{mark.label} median {number(middle)}, from {number(min(taken))} to {number(max(taken))} {unit}")
    return chart(title, "; ".join(said), bottom + 22, parts)


def columns(title: str, own: Sequence[float], drift: Sequence[float]) -> Markup:
    """Error of each layer by itself as columns, and how far the stream has drifted behind it as a line."""
    bottom = 150
    y = Axis.over([100 * value for value in (*own, *drift)], bottom, 24, zero=True)
    step = (WIDTH - 44) / max(1, len(own))
    parts = [line(40, y.at(tick), WIDTH - 4, y.at(tick), "grid") for tick in y.ticks()]
    parts += [text(36, y.at(tick) + 4, f"{number(tick)}%", "tick", "end") for tick in y.ticks()]
    places = [40 + step * (index + 0.5) for index in range(len(own))]
    for index, (x, alone, after) in enumerate(zip(places, own, drift, strict=True)):
        said = tag("title", f"layer {index}: own {alone:.2%}, drift {after:.2%}")
        top = y.at(100 * alone)
        parts.append(tag("rect", said, x=x - 0.36 * step, y=top, width=0.72 * step, height=bottom - top, class_="own"))
    behind = [(x, y.at(100 * value)) for x, value in zip(places, drift, strict=True)]
    parts.append(tag("polyline", points=" ".join(f"{x:.1f},{height:.1f}" for x, height in behind), class_="drift"))
    parts += [tag("circle", cx=x, cy=height, r=2.5, class_="drift") for x, height in behind]
    every = max(1, math.ceil(len(own) / 10))
    parts += [text(places[at], bottom + 14, str(at), "tick", "middle") for at in range(0, len(own), every)]
    parts.append(text((40 + WIDTH) / 2, bottom + 30, "decoder layer", "axis", "middle"))
    worst = int(np.argmax(own))
    said_of = (
        f"{len(own)} layers; the largest own error is {own[worst]:.2%}, of layer {worst}; drift ends at {drift[-1]:.2%}"
    )
    return chart(title, said_of, bottom + 38, parts)


def grid(title: str, rows: Sequence[str], table: np.ndarray, names: Sequence[Sequence[str]]) -> Markup:
    """A shade for each value, on a scale of logarithms from the least to the largest.

    Args:
        table: [rows, layers]; NaN is left empty.
        names: what the tooltip says of each cell.
    """
    known = table[np.isfinite(table) & (table > 0)]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    left, height = 92, 20
    step = (WIDTH - left - 4) / max(1, table.shape[1])
    bottom = 6 + height * len(rows)
    parts = []
    for row, label in enumerate(rows):
        parts.append(text(0, 6 + height * (row + 0.68), label, "label", room=left))
        for column in range(table.shape[1]):
            value = float(table[row, column])
            if not math.isfinite(value):
                continue
            shade = 1.0 if high <= low else math.log(max(value, low) / low) / math.log(high / low)
            place = {"x": left + step * column, "y": 6.0 + height * row, "width": step - 1, "height": height - 1}
            said = tag("title", names[row][column])
            parts.append(tag("rect", said, class_="cell", fill_opacity=0.08 + 0.92 * shade, **place))
    every = max(1, math.ceil(table.shape[1] / 10))
    parts += [
        text(left + step * (at + 0.5), bottom + 14, str(at), "tick", "middle") for at in range(0, table.shape[1], every)
    ]
    parts.append(text((left + WIDTH) / 2, bottom + 30, "decoder layer", "axis", "middle"))
    scale = (
        f"From {number(low)} to {number(high)}, the stronger the colour, the more."
        if known.size
        else "Nothing was measured."
    )
    return chart(title, scale, bottom + 38, parts)
