"""Whose tokenizer a fine-tuned model has: its chat template and new tokens belong to what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from compressor.adapter import Adapter
from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.files import digest_file
from compressor.json_file import read_object
from compressor.tokenizer import TOKENIZER_FILES
from compressor.writer import LEGAL, companions_of

Choice = Literal["auto", "base", "adapter"]
Files = Mapping[str, Path]

TEMPLATE, CONFIG, VOCABULARY = "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"
OTHERS = ("generation_config.json", *LEGAL)  # files beside weights that belong to no tokenizer
KEEP = "--tokenizer base keeps the model's own."


def brought(adapters: Sequence[Adapter], choice: Choice) -> Files:
    """Files of the tokenizer that the adapters bring, by name; none where the base's is kept.

    Raises:
        InputError: they bring different ones, or none although an adapter's was asked for.
    """
    if choice == "base":
        return {}
    found = [(one, files) for one in adapters if (files := _files_of(one))]
    if not found and choice == "adapter":
        raise InputError(f"The adapter {adapters[0].source} brings no tokenizer and no chat template.", KEEP)
    for other, files in found[1:]:
        first = found[0][1]
        odd = [name for name in sorted({*first, *files}) if _digest(first, name) != _digest(files, name)]
        if odd:
            raise InputError(
                f"The adapters {found[0][0].source} and {other.source} bring different tokenizers ({odd[0]}).",
                f"{KEEP} To have that of one adapter, remove these files from the other's folder.",
            )
    return found[0][1] if found else {}


def beside(base: Path, files: Files) -> dict[str, Path]:
    """The files beside the weights of the fine-tuned model: a whole tokenizer takes the place of the base's, and single
    files that of their namesakes.
    """
    kept = companions_of(base)
    if any(name in files for name in TOKENIZER_FILES):
        kept = {name: path for name, path in kept.items() if not _is_of_tokenizer(name)}
    elif _template(files) is not None:
        kept = {name: path for name, path in kept.items() if name != TEMPLATE}  # it would go before the adapter's
    return {**kept, **files}


def check_rows(files: Files, architecture: Architecture) -> None:
    """See that every added token of a tokenizer has a row in the fine-tuned model's embedding.

    Raises:
        InputError: one has none.
    """
    for token, number in _added(files).items():
        if number >= architecture.vocab_size:
            raise InputError(
                f"The tokenizer in {files[VOCABULARY].parent} has the token {token!r} with the number {number}, and "
                f"the embedding has {architecture.vocab_size:,} rows.",
                f"The adapter does not hold the embedding that was resized for it; {KEEP}",
            )


def tokenizer_notes(base: Path, files: Files) -> list[str]:
    """For the ledger: what the fine-tuned model has from its adapter."""
    before, after = companions_of(base), beside(base, files)
    if all(_digest(before, name) == _digest(after, name) for name in {*before, *after}):
        return []
    new = [token for token in _added(after) if token not in _added(before)]
    shown = ", ".join(new[:4]) + (" ..." if len(new) > 4 else "")
    tokens = f"{len(new)} new tokens ({shown})" if new else "no new tokens"
    same = _template(before) == _template(after)
    template = "the same chat template" if same else "its chat template" if _template(after) else "no chat template"
    folder = next(iter(files.values())).parent
    return [f"tokenizer of {folder} ({', '.join(sorted(files))}): {tokens}, {template}; {KEEP}"]


def _files_of(adapter: Adapter) -> dict[str, Path]:
    """Those beside the adapter, or in the folder that it was found in."""
    folders = dict.fromkeys((adapter.root, adapter.folder))
    found = ({n: p for n, p in companions_of(folder).items() if _is_of_tokenizer(n)} for folder in folders)
    return next(filter(None, found), {})


def _is_of_tokenizer(name: str) -> bool:
    return not any(fnmatch(name, pattern) for pattern in OTHERS)


def _digest(files: Files, name: str) -> str | None:
    return digest_file(files[name]) if name in files else None


def _added(files: Files) -> dict[str, int]:
    """Numbers of the tokens that were added to a vocabulary, in their order."""
    entries = _json(files, VOCABULARY).get("added_tokens")
    fitting = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    return {str(one.get("content")): one["id"] for one in fitting if isinstance(one.get("id"), int)}


def _template(files: Files) -> Any:
    if TEMPLATE in files:
        return files[TEMPLATE].read_text(encoding="utf-8", errors="replace")
    return _json(files, CONFIG).get("chat_template")


def _json(files: Files, name: str) -> dict[str, Any]:
    return read_object(files[name], KEEP) if name in files else {}
