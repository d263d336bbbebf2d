"""Which tokens end a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.architecture import read_config
from compressor.errors import InputError
from compressor.json_file import read_object
from compressor.templates import checked, limited

GENERATION_CONFIG, CONFIG, TOKENIZER = "generation_config.json", "config.json", "the tokenizer"


@dataclass(frozen=True)
class EndTokens:
    """Tokens that end a text, in the order in which they are named, and where they are named."""

    ids: tuple[int, ...]
    named_by: str

    @classmethod
    def of(cls, root: Path, tokenizer: Any) -> EndTokens:
        """Those of the model, or of the artifact, in the folder `root`.

        As `transformers.generate` decides: generation_config.json, else config.json. Where neither names one, it would
        go on to the limit; then the tokenizer's own end is taken.

        Raises:
            InputError: a file cannot be read, or names something other than tokens.
        """
        if files := list(root.glob("*.gguf")):
            return cls(tuple(_gguf_ends(files[0])), files[0].name)
        if ids := _ids(read_generation_config(root).get("eos_token_id"), root / GENERATION_CONFIG):
            return cls(ids, GENERATION_CONFIG)
        if (root / CONFIG).is_file() and (ids := _ids(read_config(root).get("eos_token_id"), root / CONFIG)):
            return cls(ids, CONFIG)
        return cls(_ids(tokenizer.eos_token_id, root), TOKENIZER)

    def notes(self, tokenizer: Any) -> list[str]:
        """What the ledger says of them, where the tokenizer names another end, or its chat template has one."""
        return [*self._end_notes(tokenizer), *self._turn_notes(tokenizer)]

    def _end_notes(self, tokenizer: Any) -> list[str]:
        own = tokenizer.eos_token_id
        if self.named_by == TOKENIZER:
            found = f"{GENERATION_CONFIG} and {CONFIG} name no token that ends a text"
            return [f"{found}; the tokenizer's own is taken, {tokenizer.eos_token}" if self.ids else found]
        if own is None or own in self.ids:
            return []
        ends = ", ".join(tokenizer.convert_ids_to_tokens(list(self.ids)))
        return [
            f"a text ends at {ends}, as {self.named_by} says, and not at the tokenizer's {tokenizer.eos_token}; "
            f"some runtimes stop there too"
        ]

    def _turn_notes(self, tokenizer: Any) -> list[str]:
        """On a turn's end that a fine-tune brought, and that nobody told who decides where generation stops."""
        turn = turn_end(tokenizer)
        if turn is None or turn in (*self.ids, tokenizer.eos_token_id):
            return []
        name = tokenizer.convert_ids_to_tokens(turn)
        return [
            f"the chat template ends a turn with {name}, which {self.named_by} does not name: answers go on behind it; "
            f"add {turn} to eos_token_id in the model's {GENERATION_CONFIG}"
        ]


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts behind an answer; None where there is none."""
    if not tokenizer.chat_template:
        return None
    answer = "llmc-answers"
    chat = [{"role": "user", "content": "llmc-asks"}, {"role": "assistant", "content": answer}]
    try:
        with limited():
            behind = checked(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition(answer)[2]
    except Exception:  # a template that fails is told where chats are rendered
        return None
    tokens = tokenizer(behind, add_special_tokens=False)["input_ids"]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((token for token in tokens if token in special), None)


def read_generation_config(root: Path) -> dict[str, Any]:
    """The generation_config.json of a folder; empty where there is none.

    Raises:
        InputError: it is not a JSON object.
    """
    path = root / GENERATION_CONFIG
    return read_object(path, "Save it again with transformers, or take it away.") if path.is_file() else {}


def _ids(named: Any, path: Path) -> tuple[int, ...]:
    """What `eos_token_id` names: nothing, a token, or several."""
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
        raise InputError(f"{path}: eos_token_id is {named!r}, neither a token id nor a list of them.")
    return tuple(dict.fromkeys(ids))


def _gguf_ends(path: Path) -> list[int]:
    from compressor.gguf.config import end_ids
    from compressor.gguf.container import GgufFile

    return end_ids(GgufFile.open(path))
