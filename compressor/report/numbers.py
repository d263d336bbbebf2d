"""Numbers as people read them: no exponents like `2e+03`, no more digits than are known."""

from __future__ import annotations

import math

from compressor.measure.statistics import Estimate

LEAST = 1e-5  # smaller numbers are written as a power of ten
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """A number with this many significant digits; whole digits are never cut, trailing zeros are."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if abs(value) < LEAST:
        return f"{value / 10.0**exponent:.{min(digits, 2) - 1}f} × {_power(exponent)}"
    return decimals(value, max(0, digits - 1 - exponent), trim=True)


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(RAISED)}"


def decimals(value: float, count: int, trim: bool = False) -> str:
    """A number with `count` decimals, and never as minus zero."""
    text = f"{value:z.{count}f}"
    return text.rstrip("0").rstrip(".") if trim and "." in text else text


def estimate(value: Estimate, percent: bool = False, least: int = 0) -> str:
    """An estimate with its standard error, to the error's two significant digits but at least `least` decimals.

    There are at most four decimals, and where an error has none in these, one significant digit; two of percentages.
    What is so small and no larger than two standard errors is 0.
    """
    factor, unit = (100, "%") if percent else (1, "")
    found, error, most = factor * value.value, factor * (value.stderr or 0.0), 2 if percent else 4
    if not error or not math.isfinite(found) or not math.isfinite(error):
        return f"{number(found, 4)}{unit if math.isfinite(found) else ''}"
    exponent = math.floor(math.log10(error))
    is_small = not percent and not round(error, most)
    if is_small and abs(found) < 10**-most and abs(found) <= 2 * error:
        return "0"
    if is_small and abs(found) < LEAST:
        return f"({found / 10.0**exponent:.0f} ± {error / 10.0**exponent:.0f}) × {_power(exponent)}"
    digits = -exponent if is_small else min(most, max(least, 1 - exponent))
    return f"{decimals(found, digits)} ± {decimals(error, digits)}{unit}"
