"""The texts of a run: what passes calibrate on, and what every row is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.ledger import AuditRecord, TextRecord
from compressor.pass_ import Progress
from compressor.plan import Plan
from compressor.recipe import Recipe


class TokenSet(Protocol):
    """Windows of tokens, and where they come from. `tokens` is int64 [windows, length], and so is `origins`, the
    number of each token's document; None for running text.
    """

    @property
    def tokens(self) -> torch.Tensor: ...
    @property
    def origins(self) -> torch.Tensor | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Texts(Protocol):
    """Turns text sources into tokens. Given by the caller: the core does not know the calibration package."""

    def check_sources(self, recipe: Recipe) -> None:
        """Raises an InputError where a text is named that is not there. Reads nothing."""

    def count(self, recipe: Recipe, tokenizer: Any, calibrated: bool) -> dict[str, int]:
        """Windows by the name of the text, as far as they are needed; raises an InputError where they are too few."""
        ...

    def calibration(self, recipe: Recipe, tokenizer: Any) -> TokenSet: ...
    def evaluation(self, recipe: Recipe, tokenizer: Any) -> TokenSet: ...
    def audit(
        self, calibration: TokenSet, evaluation: TokenSet | None, tokenizer: Any, architecture: Architecture
    ) -> list[AuditRecord]: ...


@dataclass(frozen=True)
class RunTexts:
    """The tokens of a run, and what the auditor says of those that passes calibrate on."""

    calibration: TokenSet | None
    evaluation: TokenSet | None
    audit: list[AuditRecord]

    @classmethod
    def load(
        cls, plans: Sequence[Plan], checkpoint: Checkpoint, tokenizer: Any, texts: Texts, progress: Progress
    ) -> RunTexts:
        """Load what any of the plans needs, and audit it; their recipes name the same texts.

        Raises:
            InputError: a text is too short, or a strict recipe's calibration text is not all that it should be.
        """
        recipe = plans[0].recipe
        wanted = any(plan.calibrated for plan in plans)
        calibration = texts.calibration(recipe, tokenizer) if wanted else None
        evaluation = texts.evaluation(recipe, tokenizer) if recipe.measure.is_judged else None
        found: list[AuditRecord] = []
        if calibration is not None:
            progress("auditing the texts", 0, 1)
            found = texts.audit(calibration, evaluation, tokenizer, checkpoint.architecture)
            progress("auditing the texts", 1, 1)
        if recipe.calibration is not None and recipe.calibration.strict:
            _check_audit(found)
        return cls(calibration, evaluation, found)

    def of(self, plan: Plan) -> RunTexts:
        """What one of the plans uses."""
        return self if plan.calibrated else replace(self, calibration=None, audit=[])

    def records(self) -> dict[str, TextRecord]:
        """What the ledger says of them."""
        roles = {"calibration": self.calibration, "evaluation": self.evaluation}
        return {role: _record(text) for role, text in roles.items() if text is not None}

    def warnings(self, recipe: Recipe) -> list[str]:
        """What the ledger warns of."""
        measure = recipe.measure
        found = [*self._adapted(recipe)]
        found += [f"calibration text, {one.name}: {one.said}" for one in self.audit if one.outcome == "warning"]
        if measure.texts is None and measure.effort != "none":
            found.append("Perplexity and KL divergence were not measured: no evaluation text was given (--eval).")
        return found

    def _adapted(self, recipe: Recipe) -> Iterator[str]:
        """How defaults were adapted to the text and to the model."""
        section = recipe.calibration
        windows = len(self.calibration.tokens) if self.calibration is not None else None
        if section is not None and windows is not None and windows < section.samples:
            yield (
                f"The calibration text holds {windows} windows of {section.length} tokens, fewer than the default of "
                f"{section.samples}; all of them were used."
            )
        for what, text in (("calibration", section), ("evaluation", recipe.measure)):
            if text is not None and text.length < type(text).model_fields["length"].default and text.is_default_length:
                yield f"Windows of {what} text have {text.length} tokens: the model's context is no longer."


def _check_audit(found: Sequence[AuditRecord]) -> None:
    """Fail closed: a warning, and what could not be checked, are no success.

    Raises:
        InputError: not all is well, or there is nothing to audit.
    """
    if not found:
        raise InputError("--strict audits calibration text, and no pass of this run uses any.", "Leave out --strict.")
    bad = [f"{one.name}, {one.outcome}: {one.said}" for one in found if one.outcome != "ok"]
    if bad:
        raise InputError(
            f"The calibration text does not pass --strict: {'; '.join(bad)}.",
            "Give better text; without --strict the run only notes it.",
        )


def _record(text: TokenSet) -> TextRecord:
    windows, length = text.tokens.shape
    documents = None if text.origins is None else len(text.origins.unique())
    return TextRecord(text.source, windows, length, text.digest, list(text.notes), documents)
