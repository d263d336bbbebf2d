"""Is calibration text fit for its purpose? Checked on the windows of tokens that passes will really see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.dataset import TokenSet, ngram_hashes, overlap
from compressor.architecture import Architecture
from compressor.errors import MissingExtra
from compressor.ledger import AuditRecord
from compressor.templates import render_chat

NGRAM = 13  # tokens, as in the overlap with the evaluation
REPEATED = 0.05  # of 13-grams in more than one window, from which text counts as duplicated
MIX_DISTANCE = 0.25  # total variation of two language mixes, from which they are different
LEAST_SHARE = 0.02  # of a language that is named, and of windows with marks of another chat template
MARKS = {
    "ChatML": "<|im_start|>",
    "Llama 2 or Mistral": "[INST]",
    "Llama 3": "<|start_header_id|>",
    "Gemma": "<start_of_turn>",
    "Phi": "<|assistant|>",
    "Alpaca": "### Instruction:",
}


def audit(
    calibration: TokenSet, evaluation: TokenSet | None, tokenizer: Any, architecture: Architecture
) -> list[AuditRecord]:
    """All checks. What cannot be checked is said, and is no success."""
    texts = _texts(calibration, tokenizer)
    others = None if evaluation is None else _texts(evaluation, tokenizer)
    return [
        tokens_per_layer(calibration, architecture),
        duplicates(calibration),
        independence(calibration, evaluation, tokenizer),
        languages(texts, others),
        chat_template(texts, tokenizer),
    ]


def _texts(windows: TokenSet, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(window) for window in windows.tokens.tolist()]


def tokens_per_layer(calibration: TokenSet, architecture: Architecture) -> AuditRecord:
    """Whether every linear sees as many tokens as it has inputs: with fewer, their second moments are singular.

    Every family here is dense: each token goes through each linear, and there are no experts to miss any.
    """
    tokens = calibration.tokens.numel()
    widths = {name: shape[1] for name, shape in architecture.linears().items()}
    widest = max(widths, key=lambda name: widths[name])
    short = [name for name, width in widths.items() if tokens < width]
    layers = dict.fromkeys(widths, tokens)
    figures = {"tokens": tokens, "layers": layers, "experts": {}, "inputs": widths, "short": short}
    per_input = tokens / widths[widest]
    if short:
        said = (
            f"{tokens} tokens are fewer than the {widths[widest]} inputs of {widest} (and {len(short) - 1} more layers)"
        )
        return AuditRecord("tokens", "warning", f"{said}; more samples or longer ones help", figures)
    said = f"{tokens} through each of {len(widths)} linears (no experts), {per_input:.1f} for each input of the widest"
    return AuditRecord("tokens", "ok", said, figures)


def duplicates(calibration: TokenSet) -> AuditRecord:
    """How much of the text is there more than once: 13-grams of tokens that are in more than one window."""
    count, length = calibration.tokens.shape
    n = min(NGRAM, length)
    hashes = ngram_hashes(calibration.tokens, n).reshape(count, -1)
    each = np.concatenate([np.unique(window) for window in hashes])
    distinct, windows = np.unique(each, return_counts=True)
    share = float((windows > 1).sum() / len(distinct))
    same = count - len(calibration.tokens.unique(dim=0))
    figures = {"share": share, "ngram": n, "equal_windows": same}
    said = (
        f"{share:.1%} of {n}-token sequences are in more than one window, and {same} of {count} windows repeat another"
    )
    return AuditRecord("duplicates", "warning" if share >= REPEATED or same else "ok", said, figures)


def independence(calibration: TokenSet, evaluation: TokenSet | None, tokenizer: Any) -> AuditRecord:
    """Whether the evaluation's text is in the calibration's."""
    if evaluation is None:
        return AuditRecord("overlap", "not checked", "no evaluation text was given (--eval)")
    found = overlap(calibration, evaluation, tokenizer, NGRAM)
    figures = {"share": found.fraction, "ngram": found.n, "example": found.example}
    warning = found.warning()
    said = f"{found.fraction:.1%} of the evaluation's {found.n}-token sequences are in the calibration text"
    return AuditRecord("overlap", "warning" if warning else "ok", warning or said, figures)


def languages(texts: Sequence[str], others: Sequence[str] | None) -> AuditRecord:
    """The languages of the windows, and whether the evaluation has others."""
    try:
        mix = language_mix(texts)
        other = None if others is None else language_mix(others)
    except MissingExtra as error:
        return AuditRecord("languages", "not checked", f"{error} {error.hint}")
    figures = {"calibration": mix, "evaluation": other}
    if other is None:
        return AuditRecord("languages", "ok", _spelled(mix), figures)
    distance = sum(abs(mix.get(one, 0) - other.get(one, 0)) for one in mix.keys() | other.keys()) / 2
    said = f"{_spelled(mix)}; of the evaluation {_spelled(other)}"
    return AuditRecord(
        "languages", "warning" if distance > MIX_DISTANCE else "ok", said, figures | {"distance": distance}
    )


def language_mix(texts: Sequence[str]) -> dict[str, float]:
    """Share of texts in each language, by ISO 639-1 code, the most frequent first.

    Raises:
        MissingExtra: py3langid is not installed.
    """
    try:
        from py3langid import langid
    except ImportError as error:
        raise MissingExtra("py3langid", "audit", "Telling languages") from error
    found = Counter(langid.classify(text)[0] for text in texts)
    langid.IDENTIFIER = None  # 70 MiB, which passes have a better use for
    return {language: count / len(texts) for language, count in found.most_common()}


def _spelled(mix: dict[str, float]) -> str:
    named = [f"{language} {share:.0%}" for language, share in mix.items() if share >= LEAST_SHARE]
    return ", ".join(named) or "too many languages to name"


def chat_template(texts: Sequence[str], tokenizer: Any) -> AuditRecord:
    """Whether the text is laid out as the model will be asked: by its own chat template, and by no other one."""
    rendered, own = _own_template(tokenizer)
    foreign = {name: _share(texts, mark) for name, mark in MARKS.items() if mark not in rendered}
    foreign = {name: share for name, share in foreign.items() if share >= LEAST_SHARE}
    chats = _share(texts, own) if own else 0.0
    figures = {"mark": own, "chats": chats, "foreign": foreign}
    if foreign:
        named = ", ".join(f"{name} in {share:.0%} of them" for name, share in foreign.items())
        said = f"the windows have marks of a chat template that is not the model's: {named}"
        return AuditRecord("chat template", "warning", said, figures)
    if not rendered:
        return AuditRecord("chat template", "ok", "the model has none, and the text has no marks of one", figures)
    if own is None:
        return AuditRecord(
            "chat template", "not checked", "the model's template puts nothing between two messages", figures
        )
    said = f"{chats:.0%} of the windows have the mark of the model's own template, {own!r}"
    if not chats:
        said += "; it is asked in chats: give `messages` in the place of `text`"
    return AuditRecord("chat template", "ok" if chats else "warning", said, figures)


def _share(texts: Sequence[str], mark: str) -> float:
    return sum(mark in text for text in texts) / len(texts)


def _own_template(tokenizer: Any) -> tuple[str, str | None]:
    """A chat in the model's template, and the longest line that this puts between a question and its answer."""
    if not tokenizer.chat_template:
        return "", None
    asked, answered = "llmc-asks", "llmc-answers"
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    rendered = render_chat(tokenizer, chat, "An example")
    between = rendered.partition(asked)[2].partition(answered)[0]
    return rendered, max((line.strip() for line in between.splitlines()), key=len, default="") or None
