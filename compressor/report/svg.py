"""Elements of SVG, and axes. Colours come from classes of the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from compressor.report.numbers import LEAST, decimals, number

NARROW = 380  # width of a chart in CSS pixels that a telephone shows with its text at full size
LETTER = 6.8  # width of a letter of the labels, in the widest of usual fonts
LINE = 14  # height of a line of a label
PIECES = re.compile(r"[^,:/+ ]*[,:/+ ]?")  # of a name: lines end behind a sign


def tag(name: str, *inside: Any, **attributes: Any) -> Markup:
    """One element. Underscores of attribute names become dashes, and one at the end vanishes (`class_`)."""
    spelled = {key.rstrip("_").replace("_", "-"): _plain(value) for key, value in attributes.items()}
    written = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in spelled.items())
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(map(escape, inside)))


def _plain(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text."""
    return tag("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def label(x: float, y: float, words: str, room: float) -> Markup:
    """A name in as many lines as its room asks for, around the height `y`."""
    lines = wrapped(words, room)
    top = y + 4 - LINE * (len(lines) - 1) / 2
    spans = [tag("tspan", one, x=x, y=top + LINE * at) for at, one in enumerate(lines)]
    return tag("text", *spans, class_="label")


def wrapped(words: str, room: float) -> list[str]:
    """A name in lines that fit into `room` pixels, broken behind a sign where there is one."""
    most = max(4, int(room / LETTER))
    lines = [""]
    for piece in filter(None, PIECES.findall(words)):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > most:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return [one.rstrip() for one in lines]


def label_room(names: Sequence[str], most: float) -> float:
    """Pixels for the longest of these names, and not more than `most`."""
    return min(most, LETTER * max((len(name) for name in names), default=0) + 2)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def chart(title: str, description: str, size: tuple[float, float], parts: Sequence[Markup]) -> Markup:
    """A whole chart, told to those who do not see it by its title and description."""
    said, box = f"{title}. {description}", f"0 0 {size[0]:.0f} {size[1]:.0f}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=said, xmlns="http://www.w3.org/2000/svg")


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, zero: bool = False) -> Axis:
        """An axis that holds all values with some room around them, and zero if it is wanted."""
        known = [value for value in values if math.isfinite(value)] + [0.0] * zero or [0.0]
        low, high = min(known), max(known)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low if zero and low >= 0 else low - room, high + room, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value; values beyond the axis lie on its end, and so does what is no number."""
        if math.isnan(value):
            return self.end
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 4) -> list[tuple[float, str]]:
        """Round values on the axis, `about` as many: the pixel of each, and how it is written."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if 1.3 * power * factor >= rough)
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        values = [step * at for at in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [(self.at(one), decimals(one, places) if step >= LEAST else number(one)) for one in values]
