"""The charts of a report, as SVG. Each takes plain values; what they mean is decided by `compressor.report.figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from compressor.measure.statistics import Estimate
from compressor.report.numbers import estimate, number
from compressor.report.svg import LINE, NARROW, Axis, chart, label, label_room, line, tag, text, wrapped

CONFIDENCE = 1.96  # standard errors on each side of an interval that holds the truth 95 times of 100
LABELS = 0.4  # of the width at most, for names
ROW = 24  # pixels of a named row with one line
TICK = 110  # pixels of an axis for each of its ticks


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


def _across(axis: Axis, top: float, bottom: float) -> list[Markup]:
    """Upright lines at the ticks of an axis that lies below, and their values."""
    ticks = axis.ticks(max(3, int((axis.end - axis.start) / TICK)))
    parts = [line(at, top, at, bottom, "grid") for at, _ in ticks]
    return parts + [text(at, bottom + 15, said, "tick", "middle") for at, said in ticks]


def upwards(axis: Axis, left: float, right: float, unit: str = "") -> list[Markup]:
    """Level lines at the ticks of an axis that stands on the left, and their values."""
    ticks = axis.ticks()
    parts = [line(left, at, right, at, "grid") for at, _ in ticks]
    return parts + [text(left - 6, at + 4, said + unit, "tick", "end") for at, said in ticks]


@dataclass(frozen=True)
class _Rows:
    """Where named rows lie: names on the left, in as many lines as they need, and a value on the right."""

    names: Sequence[str]
    width: float

    @property
    def room(self) -> float:
        return label_room(self.names, LABELS * self.width)

    def heights(self) -> list[float]:
        return [ROW + LINE * (len(wrapped(name, self.room)) - 1) for name in self.names]

    def middles(self) -> list[float]:
        """The middle of each row."""
        heights = self.heights()
        return [8 + sum(heights[:at]) + own / 2 for at, own in enumerate(heights)]

    @property
    def bottom(self) -> float:
        return 8 + sum(self.heights())

    def labels(self) -> list[Markup]:
        return [label(0, y, name, self.room) for name, y in zip(self.names, self.middles(), strict=True)]


def intervals(title: str, marks: Sequence[Mark], width: float = NARROW) -> Markup:
    """A row a mark, each with its 95% interval."""
    rows = _Rows([mark.label for mark in marks], width)
    axis = Axis.over(_ends([mark.y for mark in marks]), rows.room + 8, width - 62)
    parts = _across(axis, 4, rows.bottom) + rows.labels()
    for mark, y in zip(marks, rows.middles(), strict=True):
        low, high = _reach(mark.y)
        parts += [
            line(axis.at(low), y, axis.at(high), y, f"error {mark.kind}"),
            _dot(axis.at(mark.y.value), y, mark),
            text(width, y + 4, _shown(mark.y, axis), "value", "end"),
        ]
    said = "; ".join(f"{mark.label} {estimate(mark.y)}" for mark in marks)
    return chart(title, said, (width, rows.bottom + 22), parts)


def scatter(
    title: str, marks: Sequence[Mark], axes: tuple[str, str], front: Sequence[Mark] = (), width: float = NARROW
) -> Markup:
    """One value against another, with 95% intervals of both, and a line through the marks of a front.

    Args:
        axes: what x and y are, with their units.
    """
    room = label_room([mark.label for mark in marks], LABELS * width)
    heights = [float(LINE * len(wrapped(mark.label, room))) for mark in marks]
    right, bottom = width - room - 14, max(226.0, 0.4 * width, 30 + sum(heights))
    x = Axis.over(_ends([mark.x for mark in marks]), 46, right)
    y = Axis.over(_ends([mark.y for mark in marks]), bottom, 26)
    parts = upwards(y, 46, right) + _across(x, 26, bottom)
    parts += [text((46 + right) / 2, bottom + 32, axes[0], "axis", "middle"), text(2, 14, axes[1], "axis")]
    if len(front) > 1:
        path = " ".join(f"{x.at(mark.x.value):.1f},{y.at(mark.y.value):.1f}" for mark in front)
        parts.append(tag("polyline", points=path, class_="front"))
    wanted = [y.at(mark.y.value) for mark in marks]
    for mark, beside in zip(marks, _apart(wanted, heights, (24, bottom)), strict=True):
        across, up = x.at(mark.x.value), y.at(mark.y.value)
        (left, far), (low, high) = map(x.at, _reach(mark.x)), map(y.at, _reach(mark.y))
        parts += [
            line(across, up, right + 10, beside, "leader"),
            line(left, up, far, up, f"error {mark.kind}"),
            line(across, low, across, high, f"error {mark.kind}"),
            _dot(across, up, mark),
            label(right + 14, beside, mark.label, room),
        ]
    said = "; ".join(f"{mark.label}: {number(mark.x.value)}, {estimate(mark.y)}" for mark in marks)
    return chart(title, f"{axes[1]} against {axes[0]}. {said}", (width, bottom + 40), parts)


def _apart(wanted: Sequence[float], heights: Sequence[float], between: tuple[float, float]) -> list[float]:
    """Middles of labels near those that are wanted, so that none lies on another; there is room for all."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed, end = list(wanted), between[0]
    for index in order:
        placed[index] = max(wanted[index], end + heights[index] / 2)
        end = placed[index] + heights[index] / 2
    end = between[1]
    for index in reversed(order):
        placed[index] = min(placed[index], end - heights[index] / 2)
        end = placed[index] - heights[index] / 2
    return placed


def distributions(title: str, seen: Sequence[tuple[Mark, Sequence[float]]], unit: str, width: float = NARROW) -> Markup:
    """Every single observation of each row, with its median."""
    rows = _Rows([mark.label for mark, _ in seen], width)
    axis = Axis.over([value for _, taken in seen for value in taken], rows.room + 8, width - 66, zero=True)
    parts = _across(axis, 4, rows.bottom) + rows.labels()
    said = []
    for (mark, taken), y in zip(seen, rows.middles(), strict=True):
        middle = float(np.median(taken))
        parts += [
            line(axis.at(min(taken)), y, axis.at(max(taken)), y, "spread"),
            *(tag("circle", cx=axis.at(value), cy=y, r=3.5, class_=f"seen {mark.kind}") for value in taken),
            line(axis.at(middle), y - 8, axis.at(middle), y + 8, "median"),
            text(width, y + 4, f"{number(middle)} {unit}", "value", "end"),
        ]
        said.append(f"{mark.label} median {number(middle)}, from {number(min(taken))} to {number(max(taken))} {unit}")
    return chart(title, "; ".join(said), (width, rows.bottom + 22), parts)


def columns(title: str, own: Sequence[float], drift: Sequence[float], width: float = NARROW) -> Markup:
    """Error of each layer by itself as columns, and how far the stream has drifted behind it as a line."""
    bottom = 150
    y = Axis.over([100 * value for value in (*own, *drift)], bottom, 24, zero=True)
    step = (width - 44) / max(1, len(own))
    parts = upwards(y, 42, width - 4, "%")
    places = [40 + step * (index + 0.5) for index in range(len(own))]
    for index, (x, alone, after) in enumerate(zip(places, own, drift, strict=True)):
        said = tag("title", f"layer {index}: own {alone:.2%}, drift {after:.2%}")
        top = y.at(100 * alone)
        parts.append(tag("rect", said, x=x - 0.36 * step, y=top, width=0.72 * step, height=bottom - top, class_="own"))
    behind = [(x, y.at(100 * value)) for x, value in zip(places, drift, strict=True)]
    parts.append(tag("polyline", points=" ".join(f"{x:.1f},{height:.1f}" for x, height in behind), class_="drift"))
    parts += [tag("circle", cx=x, cy=height, r=2.5, class_="drift") for x, height in behind]
    every = max(1, math.ceil(len(own) / (width / 38)))
    parts += [text(places[at], bottom + 14, str(at), "tick", "middle") for at in range(0, len(own), every)]
    parts.append(text((40 + width) / 2, bottom + 30, "decoder layer", "axis", "middle"))
    worst = int(np.argmax(own))
    said_of = (
        f"{len(own)} layers; the largest own error is {own[worst]:.2%}, of layer {worst}; drift ends at {drift[-1]:.2%}"
    )
    return chart(title, said_of, (width, bottom + 38), parts)


def grid(
    title: str, rows: Sequence[str], table: np.ndarray, names: Sequence[Sequence[str]], width: float = NARROW
) -> Markup:
    """A shade for each value, on a scale of logarithms from the least to the largest.

    Args:
        table: [rows, layers]; NaN is left empty.
        names: what the tooltip says of each cell.
    """
    known = table[np.isfinite(table) & (table > 0)]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    left, height = label_room(rows, LABELS * width) + 6, 20
    step = (width - left - 4) / max(1, table.shape[1])
    bottom = 6 + height * len(rows)
    parts = []
    for row, name in enumerate(rows):
        parts.append(text(0, 6 + height * (row + 0.68), name, "label"))
        for column in range(table.shape[1]):
            value = float(table[row, column])
            if not math.isfinite(value):
                continue
            shade = 1.0 if high <= low else math.log(max(value, low) / low) / math.log(high / low)
            place = {"x": left + step * column, "y": 6.0 + height * row, "width": step - 1, "height": height - 1}
            said = tag("title", names[row][column])
            parts.append(tag("rect", said, class_="cell", fill_opacity=0.08 + 0.92 * shade, **place))
    every = max(1, math.ceil(table.shape[1] / (width / 38)))
    parts += [
        text(left + step * (at + 0.5), bottom + 14, str(at), "tick", "middle") for at in range(0, table.shape[1], every)
    ]
    parts.append(text((left + width) / 2, bottom + 30, "decoder layer", "axis", "middle"))
    scale = (
        f"From {number(low)} to {number(high)}, the stronger the colour, the more."
        if known.size
        else "Nothing was measured."
    )
    return chart(title, scale, (width, bottom + 38), parts)
