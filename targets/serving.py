"""What the serving command lines of several runtimes need to know of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SERVED_LENGTH = 4096  # tokens of prompt and answer together; longer ones cost key-value cache for every request


def length_option(flag: str, config: Mapping[str, Any]) -> list[str]:
    """`flag` with the sequence length to serve, at most what the model's positions allow."""
    return [flag, str(min(SERVED_LENGTH, config["max_position_embeddings"]))]
