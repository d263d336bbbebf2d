"""What a model is called by: a folder, a GGUF file or a hub id. Imports nothing heavy, to answer at once."""

from __future__ import annotations

import re
from pathlib import Path

from compressor.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?")  # and a revision
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def local_model(model: str) -> Path | None:
    """The folder or GGUF file of a model that is here; None for a hub id.

    Raises:
        InputError: it is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    is_gguf = path.suffix.lower() == ".gguf"
    if path.is_file():
        if is_gguf:
            return path
        hint = f"Give its folder: {path.parent}." if path.name.endswith(WEIGHTS) else None
        raise InputError(f"{model} is a file, not a model folder.", hint)
    if is_gguf or not HUB_ID.fullmatch(model):
        raise InputError(f"{model} is neither a folder, a .gguf file nor a hub id (org/name).")
    return None
