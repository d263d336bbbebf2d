"""Settings of generation_config.json that transformers refuses to save a model with, which it opens all the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compressor.end_tokens import GENERATION_CONFIG, read_generation_config
from compressor.errors import InputError, first_line

# Tokens and provenance alone are never refused, and importing transformers takes seconds.
PLAIN = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
_NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)  # in the message of GenerationConfig.validate


def usable_settings(root: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings in a folder's generation_config.json that can be saved, and the names of those that cannot.

    transformers takes some for mistakes beside the others: temperature without do_sample, early_stopping without beams.

    Raises:
        InputError: the file is no JSON object, or transformers does not open a model with it.
    """
    settings, refused = read_generation_config(root), []
    while named := _refused(settings, root / GENERATION_CONFIG):
        refused += named
        settings = {key: value for key, value in settings.items() if key not in named}
    return settings, refused


def refused_note(root: Path) -> list[str]:
    """What the ledger says of a folder whose generation_config.json is not copied as it is.

    Raises:
        InputError: as `usable_settings`.
    """
    _, refused = usable_settings(root)
    if not refused:
        return []
    return [
        f"{GENERATION_CONFIG} is copied without {', '.join(refused)}: transformers refuses to save a model with such "
        f"a setting beside the others"
    ]


def _refused(settings: dict[str, Any], path: Path) -> list[str]:
    """Names of settings that transformers refuses; they mean nothing to it beside the others."""
    if settings.keys() <= PLAIN and not any(isinstance(value, int) and value < 0 for value in settings.values()):
        return []
    from transformers import GenerationConfig

    try:
        GenerationConfig(**settings).validate(strict=True)
    except Exception as error:  # settings of wrong types fail in many ways
        named = [name for name in _NAMED.findall(str(error)) if name in settings]
        if not named:
            raise InputError(
                f"{path}: transformers opens no model with it ({first_line(error)}).",
                "Mend this setting, or remove it.",
            ) from error
        return named
    return []
