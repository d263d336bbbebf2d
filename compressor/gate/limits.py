"""What a gate allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compressor.errors import InputError

ALPHA = 0.05


def fraction(value: Any) -> float:
    """A share that is written as `2%` or as `0.02`.

    Raises:
        ValueError: it is neither, negative, or 1 and more without a percent sign, which hardly anybody means.
    """
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError as error:
        raise ValueError("Write a share as 2% or as 0.02") from error
    if not 0 <= number < float("inf"):
        raise ValueError("A limit is a number from 0 upwards")
    if text.endswith("%"):
        return number / 100
    if number >= 1:
        raise ValueError(f"{text} is more than all; write {text}% for {number / 100:g}")
    return number


Share = Annotated[float, BeforeValidator(fraction)]


class Limits(BaseModel):
    """How much worse a row may be; None: not asked. `alpha` bounds the chance of a wrong verdict of either kind.

    Attributes:
        max_perplexity_increase: relative to the original or baseline.
        max_accuracy_drop: in points: 0.02 lets 71% become 69%.
        max_latency_increase: of the time to first token and of the time per token, relative.
        max_kl: KL divergence from the original, in nats a token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_perplexity_increase: Share | None = None
    max_accuracy_drop: Share | None = None
    max_latency_increase: Share | None = None
    max_kl: float | None = Field(None, ge=0, allow_inf_nan=False)
    alpha: Share = Field(ALPHA, gt=0, lt=0.5)

    @property
    def asked(self) -> bool:
        return any(value is not None for name, value in self if name != "alpha")

    def split(self, has_tasks: bool) -> tuple[Limits, Limits]:
        """Those on what evaluation text tells, and the others. Accuracy is told by tasks where there are any."""
        names = {"max_perplexity_increase", "max_kl"} | (set() if has_tasks else {"max_accuracy_drop"})
        others = {name for name, _ in self if name != "alpha"} - names
        return self.model_copy(update=dict.fromkeys(others)), self.model_copy(update=dict.fromkeys(names))

    @property
    def needs_text(self) -> bool:
        """Whether a limit is on what only evaluation text can tell."""
        return any(one is not None for one in (self.max_perplexity_increase, self.max_accuracy_drop, self.max_kl))


def limits_of(given: Mapping[str, Any], recipe: Mapping[str, Any]) -> Limits:
    """The limits that were given, else those of a run's recipe; an `alpha` that was given goes with either.

    Raises:
        InputError: one cannot be read, or there is none.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not given.keys() - {"alpha"}:
        given = (recipe.get("gate") or {}) | given
    try:
        limits = Limits.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise InputError(
            f"{option} {first['input']} is not allowed. {first['msg'].removeprefix('Value error, ')}."
        ) from error
    if not limits.asked:
        raise InputError(
            "There is no limit to judge by.",
            "Give --max-perplexity-increase, --max-accuracy-drop, --max-latency-increase or --max-kl.",
        )
    return limits
