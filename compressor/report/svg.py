"""Elements of SVG, and axes. Colours come from classes of the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH = 380  # of every chart, in CSS pixels: a telephone shows its text at full size
LETTER = 6.8  # width of a letter of the labels, in the widest of usual fonts


def tag(name: str, *inside: Any, **attributes: Any) -> Markup:
    """One element. Underscores of attribute names become dashes, and one at the end vanishes (`class_`)."""
    spelled = {key.rstrip("_").replace("_", "-"): _plain(value) for key, value in attributes.items()}
    written = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in spelled.items())
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(map(escape, inside)))


def _plain(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start", room: float = math.inf) -> Markup:
    """A label; one that is longer than its `room` is cut, and whole in a tooltip."""
    shown = words
    if len(words) * LETTER > room:
        kept = max(1, int(room / LETTER) - 1)
        shown = words[:kept].rstrip() + "…"
    inside = [shown] if shown == words else [shown, tag("title", words)]
    return tag("text", *inside, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def chart(title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    """A whole chart, told to those who do not see it by its title and description."""
    label = f"{title}. {description}"
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=label, xmlns="http://www.w3.org/2000/svg"
    )  # fmt: skip


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
        """The pixel of a value; values beyond the axis lie on its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 4) -> list[float]:
        """Round values on the axis, `about` as many."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if 1.3 * power * factor >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def number(value: float) -> str:
    """A number for a tick or a label."""
    if 1e3 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"
