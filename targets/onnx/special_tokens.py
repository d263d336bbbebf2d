"""Which token begins a text, which end it and which one pads, as genai_config.json says them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.architecture import read_config
from compressor.end_tokens import EndTokens, read_generation_config


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids.

    Attributes:
        begin: None where the model names none.
        ends: tokens that end a text.
        padding: what fills up the shorter prompts of a batch. onnxruntime-genai leaves it out wherever it stands, so
            that it must not be a token of a text.
        notes: what the ledger says of them.
    """

    begin: int | None
    ends: tuple[int, ...]
    padding: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path, tokenizer: Any, rows: int) -> SpecialTokens:
        """Those of the model in the folder `root`, whose table has so many rows."""
        ends = EndTokens.of(root, tokenizer).ids
        named = _named(root, tokenizer, "pad_token_id")
        fitting = (token for token in (named, *_unused(tokenizer, rows)) if token not in (None, *ends))
        padding = next(fitting, None)
        return cls(
            _named(root, tokenizer, "bos_token_id"),
            ends,
            (ends or (0,))[0] if padding is None else padding,
            () if named is not None and padding == named else (_note(tokenizer, named, padding),),
        )

    def entries(self) -> dict[str, Any]:
        """Keys of genai_config.json."""
        begin = {} if self.begin is None else {"bos_token_id": self.begin}
        ends = self.ends[0] if len(self.ends) == 1 else list(self.ends)
        return {**begin, "eos_token_id": ends, "pad_token_id": self.padding}


def _named(root: Path, tokenizer: Any, key: str) -> int | None:
    """A token by its key: generation_config.json before config.json before the tokenizer."""
    found = (read_generation_config(root).get(key), read_config(root).get(key))
    return next((token for token in (*found, getattr(tokenizer, key)) if token is not None), None)


def _unused(tokenizer: Any, rows: int) -> Iterator[int | None]:
    """Tokens that no text has: rows of the table without a token, the unknown token, others that no chat has."""
    known = set(tokenizer.get_vocab().values())
    yield next((row for row in range(rows) if row not in known), None)
    yield tokenizer.unk_token_id
    template = str(tokenizer.chat_template)
    for token, added in reversed(tokenizer.added_tokens_decoder.items()):
        if added.special and token < rows and token != tokenizer.bos_token_id and added.content not in template:
            yield token


def _note(tokenizer: Any, named: int | None, padding: int | None) -> str:
    reason = "names no padding token" if named is None else f"pads with {_spelled(tokenizer, named)}, which ends a text"
    if padding is None:
        return f"the model {reason}: in a batch of onnxruntime-genai, prompts lose every token that ends a text"
    return (
        f"the model {reason}; batches of onnxruntime-genai, where prompts lose every padding token, are padded with "
        f"{_spelled(tokenizer, padding)}"
    )


def _spelled(tokenizer: Any, token: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens(token) or 'the unused token'} ({token})"
