"""Which model an adapter was trained on, and whether this is it, as far as anybody wrote it down."""

from __future__ import annotations

import re
from pathlib import Path

from compressor.adapter import Adapter
from compressor.checkpoint import Checkpoint

# What names of quantized models hold, and what peft wrote into model cards of adapters that were trained on one.
QUANTIZED_NAME = re.compile(r"(?i)(4|8)-?bits?\b|int(4|8)\b|bnb|nf4|gptq|awq|gguf|fp8")
QUANTIZED_CARD = re.compile(r"(?im)^-?\s*`?load_in_(4|8)bit`?:\s*`?true|quantization config was used during training")
SNAPSHOT = re.compile(r"^models--(.+?)--(.+)$")  # a folder of the hub's cache


def base_notes(adapter: Adapter, checkpoint: Checkpoint) -> list[str]:
    """Sentences for the ledger: what the adapter is, and warnings where its base is another one or was quantized."""
    return [_trained_on(adapter, checkpoint), _quantized(adapter)]


def _trained_on(adapter: Adapter, checkpoint: Checkpoint) -> str:
    ranks = ", ".join(map(str, adapter.ranks))
    within = adapter.folder != adapter.root
    found = f"{adapter.source}, in its folder {adapter.root.name}," if within else adapter.source
    what = f"{found} is a {adapter.kind}" + (f" of rank {ranks}" if ranks else "")
    if adapter.base is None:
        return f"{what}; it does not say which model it was trained on, but names and shapes of its tensors fit"
    revision = adapter.config.get("revision")
    trained = f"{what}, trained on {adapter.base}" + (f" at revision {revision}" if revision else "")
    known = _names(checkpoint)
    if _last(adapter.base) in known:
        return f"{trained}, which by its name is this model"
    if not known:
        return f"{trained}; whether that is this model cannot be told by name, but names and shapes of its tensors fit"
    return f"WARNING: {trained}; by its name that is another model than {known[0]}, though names and shapes fit"


def _quantized(adapter: Adapter) -> str:
    """Whether the base was quantized while the adapter was trained (QLoRA)."""
    card = adapter.root / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = "its model card says" if QUANTIZED_CARD.search(text) else None
    if found is None and adapter.base and QUANTIZED_NAME.search(_last(adapter.base)):
        found = f"the name {adapter.base} says"
    if found is not None:
        return (
            f"WARNING: {adapter.source} was trained on a quantized base, as {found} (QLoRA): it made up for errors "
            "that these float weights do not have"
        )
    return f"{adapter.source} does not record whether its base was quantized while it was trained"


def _names(checkpoint: Checkpoint) -> list[str]:
    """What the checkpoint may be called, in lower case: its folder, its hub id, and what its config remembers."""
    root = checkpoint.root.resolve()
    if root.parent.name == "steps":
        return []  # converted by this run: the folder's name is ours
    cached = next((match[2] for part in root.parts if (match := SNAPSHOT.match(part))), None)
    remembered = checkpoint.config.get("_name_or_path")
    names = [cached or root.name, *([_last(remembered)] if remembered else [])]
    return list(dict.fromkeys(name.lower() for name in names))


def _last(name: str) -> str:
    """The last part of a hub id or of a path of any system, in lower case."""
    return Path(name.replace("\\", "/").rstrip("/")).name.lower()
