"""Gives the pipeline its texts: where the recipe's text sections meet the calibration package."""

from __future__ import annotations

from typing import Any

from calibration.dataset import TokenSet, load_tokens, overlap
from compressor.recipe import Recipe

QUICK_WINDOWS = 24  # of evaluation text, in a quick measurement


class RecipeTexts:
    """Loads what a recipe names, and says where calibration and evaluation text overlap."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def calibration(self, recipe: Recipe, tokenizer: Any) -> TokenSet:
        self._tokenizer = tokenizer
        section = recipe.calibration
        assert section is not None  # the pipeline asks only when a pass needs it
        return load_tokens(section.texts, tokenizer, samples=section.samples, length=section.length, seed=section.seed)

    def evaluation(self, recipe: Recipe, tokenizer: Any) -> TokenSet:
        self._tokenizer = tokenizer
        section = recipe.measure
        assert section.texts is not None
        limit = QUICK_WINDOWS if section.effort == "quick" else None
        return load_tokens(section.texts, tokenizer, samples=limit, length=section.length, seed=None)

    def warnings(self, calibration: Any, evaluation: Any) -> list[str]:
        if calibration is None or evaluation is None:
            return []
        warning = overlap(calibration, evaluation, self._tokenizer).warning()
        return [warning] if warning else []
