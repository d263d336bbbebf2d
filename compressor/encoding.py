"""Whether a runtime makes the same tokens of a text as the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Encode = Callable[[str], Sequence[int]]
"""Tokens of a text, with the special ones that the model wants around it."""

# Differ between tokenizers that split digits, spaces, contractions or scripts differently.
TEXTS = (
    "Once upon a time, there was a cat.",
    "It's 1234567.89 — don't  split\n\n\tHELLO WORLD'S naïve Größe 你好，世界 नमस्ते 🙂🚀 x=f(y[0])//2",
    "你好，世界。今天天气很好！",
    "こんにちは、世界",
    "안녕하세요 세계",
    "Привет, мир! مرحبا नमस्ते",
    "🙂🚀👩‍👩‍👧 👍🏽",
    "def f(x):\n    if x:\n        return x\r\n",
)
# Beside these, texts that begin or end with spaces, and special tokens.
EDGES = ("  two in front, two behind  ", " ", "\n\n")


@dataclass(frozen=True)
class Difference:
    """A text of which a runtime makes other tokens."""

    text: str
    expected: list[str]
    found: list[str]

    def __str__(self) -> str:
        place = next(at for at in range(len(self.expected) + 1) if self.expected[: at + 1] != self.found[: at + 1])
        return f"of {self.text!r} it makes {_shown(self.found, place)} and not {_shown(self.expected, place)}"


def differences(encode: Encode, tokenizer: Any, texts: Iterable[str]) -> list[Difference]:
    """The texts that a runtime's own tokenizer reads otherwise than the model's."""
    found = []
    for text in texts:
        theirs, ours = [int(token) for token in encode(text)], tokenizer(text, verbose=False)["input_ids"]
        if theirs != ours:
            found.append(Difference(text, _spelled(tokenizer, ours), _spelled(tokenizer, theirs)))
    return found


def edges(tokenizer: Any) -> list[str]:
    """Spaces at both ends of a text, and special tokens with and without spaces around them."""
    named = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token is not None]
    return [*EDGES, *(f"Hello{token}there {token} again {token}\n" for token in named)]


def all_texts(tokenizer: Any) -> list[str]:
    """Every text that is compared."""
    return [*TEXTS, *edges(tokenizer)]


def _spelled(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens by their names; what no token has, runtimes give too, by its number."""
    return [str(tokenizer.convert_ids_to_tokens(one) if 0 <= one < len(tokenizer) else one) for one in ids]


def _shown(tokens: list[str], place: int) -> str:
    """Some tokens from the first place where two lists differ."""
    return " ".join(tokens[place : place + 3]) or "nothing more"
