"""What a model writes: greedy continuations of the same short pieces of the evaluation text, to be read by people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from compressor.target import Session

PROMPTS, PROMPT_TOKENS, TOKENS = 3, 32, 32


class Decodes(Protocol):
    """A tokenizer, as far as it is needed here."""

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Continuation:
    """A prompt, and the greedy continuation of it; both as text."""

    prompt: str
    text: str


def prompts(tokens: torch.Tensor) -> list[np.ndarray]:
    """The starts of windows [windows, length] that are spread over the text, int64 [1, at most PROMPT_TOKENS] each."""
    chosen = np.unique(np.linspace(0, len(tokens) - 1, min(PROMPTS, len(tokens))).astype(int))
    return [tokens[window : window + 1, :PROMPT_TOKENS].numpy() for window in chosen]


def continuations(session: Session, asked: list[np.ndarray], tokenizer: Decodes) -> list[Continuation]:
    """What a session makes of each prompt [1, length]."""
    return [
        Continuation(tokenizer.decode(prompt[0].tolist()), tokenizer.decode(greedy(session, prompt, TOKENS)))
        for prompt in asked
    ]


def greedy(session: Session, prompt: np.ndarray, length: int) -> list[int]:
    """The `length` tokens that follow a prompt, int64 [1, tokens]."""
    tokens = [session.prefill(prompt, length)]
    while len(tokens) < length:
        tokens.append(session.decode(tokens[-1]))
    return tokens
