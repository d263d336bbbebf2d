"""Gives the pipeline its texts: where the recipe's text sections meet the calibration package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.dataset import TokenSet
    from compressor.architecture import Architecture
    from compressor.ledger import AuditRecord
    from compressor.recipe import Recipe

QUICK_WINDOWS = 24  # of evaluation text, in a quick measurement


class RecipeTexts:
    """Loads what a recipe names, and audits it."""

    def check_sources(self, recipe: Recipe) -> None:
        from calibration.sources import open_corpus

        calibration, judged = recipe.calibration, recipe.measure
        if calibration is not None:
            open_corpus(calibration.texts, None)
        if judged.is_judged:
            open_corpus(str(judged.texts), None)

    def count(self, recipe: Recipe, tokenizer: Any, calibrated: bool) -> dict[str, int]:
        from calibration.dataset import count_windows, too_few

        found, section, judged = {}, recipe.calibration, recipe.measure
        if calibrated and section is not None:
            count = count_windows(section.texts, tokenizer, section.samples, section.length)
            if not count or (section.sized and count < section.samples):
                raise too_few(section.texts, count, section.samples, section.length)
            found["calibration"] = count
        if judged.is_judged:
            most = QUICK_WINDOWS if judged.effort == "quick" else 1
            found["evaluation"] = count_windows(str(judged.texts), tokenizer, most, judged.length)
            if not found["evaluation"]:
                raise too_few(str(judged.texts), 0, 1, judged.length)
        return found

    def calibration(self, recipe: Recipe, tokenizer: Any) -> TokenSet:
        from calibration.dataset import load_at_most, load_tokens

        section = recipe.calibration
        assert section is not None  # the pipeline asks only when a pass needs it

        load = load_tokens if section.sized else load_at_most  # a default adapts to the text; the ledger says so
        return load(section.texts, tokenizer, samples=section.samples, length=section.length, seed=section.seed)

    def evaluation(self, recipe: Recipe, tokenizer: Any) -> TokenSet:
        from calibration.dataset import load_tokens

        section = recipe.measure
        assert section.texts is not None
        limit = QUICK_WINDOWS if section.effort == "quick" else None
        return load_tokens(section.texts, tokenizer, samples=limit, length=section.length, seed=None)

    def audit(self, calibration: Any, evaluation: Any, tokenizer: Any, architecture: Architecture) -> list[AuditRecord]:
        from calibration import auditor

        return auditor.audit(calibration, evaluation, tokenizer, architecture)
