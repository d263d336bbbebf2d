"""Gives the pipeline its texts: where the recipe's text sections meet the calibration package."""

from __future__ import annotations

from typing import Any

from calibration import auditor
from calibration.dataset import TokenSet, load_tokens
from compressor.architecture import Architecture
from compressor.ledger import AuditRecord
from compressor.recipe import Recipe

QUICK_WINDOWS = 24  # of evaluation text, in a quick measurement


class RecipeTexts:
    """Loads what a recipe names, and audits it."""

    def calibration(self, recipe: Recipe, tokenizer: Any) -> TokenSet:
        section = recipe.calibration
        assert section is not None  # the pipeline asks only when a pass needs it
        return load_tokens(section.texts, tokenizer, samples=section.samples, length=section.length, seed=section.seed)

    def evaluation(self, recipe: Recipe, tokenizer: Any) -> TokenSet:
        section = recipe.measure
        assert section.texts is not None
        limit = QUICK_WINDOWS if section.effort == "quick" else None
        return load_tokens(section.texts, tokenizer, samples=limit, length=section.length, seed=None)

    def audit(self, calibration: Any, evaluation: Any, tokenizer: Any, architecture: Architecture) -> list[AuditRecord]:
        return auditor.audit(calibration, evaluation, tokenizer, architecture)
