"""What the serving command lines of several runtimes need to know of an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SERVED_LENGTH = 4096  # tokens of prompt and answer together; longer ones cost key-value cache for every request


def read_config(artifact: str) -> dict[str, Any]:
    """config.json of the artifact, empty when the path is not on this machine."""
    path = Path(artifact) / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def length_option(flag: str, artifact: str) -> list[str]:
    """`flag` with the sequence length to serve, at most what the model's positions allow.

    Left out when the config cannot be read: every runtime then takes the model's own maximum.
    """
    positions = read_config(artifact).get("max_position_embeddings")
    return [flag, str(min(SERVED_LENGTH, positions))] if positions else []
