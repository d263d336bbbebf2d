"""Our side of quantization.py, run the way a peer is: what `llmc compress --measure none -t hf` does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import row


def load() -> Callable[[row.Task], None]:
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 -- peers import them at once too

    from calibration.dataset import TokenSet, digest_tokens
    from compressor.errors import LlmcError
    from compressor.pipeline import RunSettings, execute
    from compressor.recipe import make_recipe
    from compressor.recipe_texts import RecipeTexts

    class SavedTokens(RecipeTexts):
        """The token matrix that every peer gets, in place of the text that `llmc compress` would draw it from."""

        def __init__(self, task: row.Task) -> None:
            self._task = task

        def check_sources(self, *_: object) -> None:
            pass

        def count(self, *_: object) -> dict[str, int]:
            return {}

        def calibration(self, *_: object) -> TokenSet:
            tokens = torch.from_numpy(numpy.load(self._task.tokens))
            return TokenSet(tokens, digest_tokens(tokens), str(self._task.tokens), 1, ())

    def quantize(task: row.Task) -> None:
        values = {
            "model": str(task.model),
            "passes": task.options["passes"],
            "target": "hf",
            "calibration": {"texts": str(task.tokens)},
            "measure": {"effort": "none"},
        }
        folder = task.out.with_name(f"{task.out.name}-run")
        try:
            execute([make_recipe(values)], RunSettings(folder), SavedTokens(task), quiet)
        except LlmcError as error:
            sys.exit(f"{error} {error.hint or ''}".strip())
        (folder / "artifact").rename(task.out)
        shutil.rmtree(folder)

    return quantize


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


if __name__ == "__main__":
    row.main(("llmc-compiler", "compressed-tensors", "transformers", "torch"), load)
