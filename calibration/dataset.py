"""Text in, token windows out: for calibrating passes and for measuring quality.

How documents become one stream of tokens:

- Plain text (`.txt`) and the lines of WikiText run on as they stand in the file, blank lines included. The
  tokenizer's own leading special token, if it has one, comes once at the start. This is how published WikiText
  perplexities are computed.
- Records (`.jsonl`, `.csv`, `.parquet`, dataset rows with `text`) each get the special tokens that the tokenizer
  adds by itself; a tokenizer that adds none gets its eos token after every document.
- Chats (`messages`), and instructions with their answers, are rendered with the tokenizer's own chat template, which
  marks its own boundaries.

The stream is cut into windows of equal length that do not overlap; what is left at the end is dropped.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibration.sources import Corpus, Document, open_corpus
from compressor.errors import InputError, TooFewWindows

PASSAGE_CHARACTERS = 1 << 16  # plain text is sampled in passages of about this length
ORDERED_CHARACTERS = 1 << 20  # and tokenized in pieces of this length when it is read in order
CHARACTERS_PER_TOKEN = 8  # a generous first guess; too low only costs a second reading
POOL = 4  # a sample is drawn from this many times the tokens it needs
CHARACTERS_PER_CALL = 1 << 18  # text handed to the tokenizer at a time
WARNING_FRACTION = 0.01  # of the evaluation's n-grams, from which an overlap is worth a sentence


@dataclass(frozen=True)
class TokenSet:
    """Token windows of equal length.

    Attributes:
        tokens: int64 [samples, length].
        digest: SHA-256 over the tokens and their shape, in hex.
        source: where the text came from, as it was asked for.
        documents: how many documents the windows were drawn from.
        notes: how documents were joined, what was skipped, how the sample was drawn.
        origins: number of the document that each token is of, in the order they were read, int64 [samples, length];
            None for running text, which does not say where a document ends.
    """

    tokens: torch.Tensor
    digest: str
    source: str
    documents: int
    notes: tuple[str, ...]
    origins: torch.Tensor | None = None


def load_tokens(
    source: str, tokenizer: Any, *, samples: int | None, length: int, seed: int | None, allow_network: bool = True
) -> TokenSet:
    """`samples` token windows of `length` tokens from a file or a dataset.

    With a seed, windows are drawn from the whole source: documents are sampled by one reading that keeps no
    more text than the windows need a few times over, only those are tokenized, and windows are drawn from them.
    Without a seed, they are the first ones in order, at most `samples` of them (all when None), and reading
    stops when there are enough.

    Args:
        source: path of a .txt, .csv, .jsonl or .parquet file, or a dataset id `name[:config][:split]`.
        allow_network: whether a dataset may be downloaded; else it must be in the local cache.

    Raises:
        InputError: the source cannot be read, or holds too little text.
    """
    corpus = open_corpus(source, tokenizer, allow_network=allow_network)
    return pack(corpus, tokenizer, source=source, samples=samples, length=length, seed=seed)


def load_at_most(source: str, tokenizer: Any, *, samples: int, length: int, seed: int) -> TokenSet:
    """`load_tokens` of `samples` windows, or of all that there are where those are fewer.

    Raises:
        InputError: there is not one, or the source cannot be read.
    """
    try:
        return load_tokens(source, tokenizer, samples=samples, length=length, seed=seed)
    except TooFewWindows as few:
        if not few.windows:
            raise
        return load_tokens(source, tokenizer, samples=few.windows, length=length, seed=seed)


def pack(
    corpus: Corpus, tokenizer: Any, *, source: str, samples: int | None, length: int, seed: int | None
) -> TokenSet:
    """Cut the documents of `corpus` into windows; see `load_tokens`."""
    if length < 1 or (samples is not None and samples < 1):
        raise InputError(f"{samples} windows of {length} tokens were asked for; both must be at least 1.")
    if seed is None:
        windows, origins, tally = _first_windows(corpus, tokenizer, samples, length)
        wanted = 1
    else:
        assert samples is not None, "a draw needs to know how many"
        windows, origins, tally = _drawn_windows(corpus, tokenizer, samples, length, seed)
        wanted = samples
    if len(windows) < wanted:
        raise too_few(source, len(windows), wanted, length)
    tokens = torch.from_numpy(windows)
    known = None if "running" in tally.kinds else torch.from_numpy(origins)
    notes = (*tally.notes(seed is not None), *corpus.notes)
    return TokenSet(tokens, digest_tokens(tokens), source, tally.tokenized, notes, known)


def count_windows(source: str, tokenizer: Any, samples: int, length: int) -> int:
    """How many windows of `length` tokens a source has, at most `samples`. Reads no further than it must.

    Raises:
        InputError: the source cannot be read.
    """
    documents = _present(open_corpus(source, tokenizer).documents(PASSAGE_CHARACTERS), _Tally())
    return len(_windows(_tokenize(documents, tokenizer, _Tally()), length, samples)[0])


def too_few(source: str, found: int, wanted: int, length: int) -> TooFewWindows:
    """What to say of a source that holds `found` windows of `length` tokens."""
    return TooFewWindows(
        f"Only {found} windows of {length} tokens in {source}, {wanted} asked.",
        f"Give more text, or --samples {found}." if found else f"Give more text than {length} tokens.",
        found,
    )


def digest_tokens(tokens: torch.Tensor) -> str:
    """SHA-256 over the shape and the values of a token tensor."""
    digest = hashlib.sha256(repr(tuple(tokens.shape)).encode())
    digest.update(tokens.numpy().astype("<i8", copy=False).tobytes())
    return digest.hexdigest()


# ---- windows


@dataclass
class _Tally:
    """What was met on the way to the windows."""

    met: int = 0
    skipped: int = 0
    tokenized: int = 0
    kinds: tuple[str, ...] = ()
    separator: str = ""
    surrounded: int = 0  # documents that hold special tokens at their ends already

    def notes(self, sampled: bool) -> tuple[str, ...]:
        joins = {
            "running": "plain text runs on as it stands",
            "record": f"documents are separated by {self.separator}",
            "chat": "chats are rendered with the tokenizer's chat template",
            "instruction": "instructions and their answers are rendered as chats with the tokenizer's chat template",
        }
        found = [joins[kind] for kind in self.kinds]
        if self.skipped:
            found.append(f"{self.skipped} empty lines or documents were skipped")
        if self.surrounded:
            found.append(f"{self.surrounded} texts hold special tokens at their ends already, and get no second ones")
        if sampled and self.tokenized < self.met:
            found.append(f"{self.tokenized} of {self.met} documents or passages were sampled")
        return tuple(found)


def _first_windows(
    corpus: Corpus, tokenizer: Any, samples: int | None, length: int
) -> tuple[np.ndarray, np.ndarray, _Tally]:
    tally = _Tally()
    documents = _present(corpus.documents(ORDERED_CHARACTERS), tally)
    return *_windows(_tokenize(documents, tokenizer, tally), length, samples), tally


def _drawn_windows(
    corpus: Corpus, tokenizer: Any, samples: int, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray, _Tally]:
    budget = POOL * samples * length * CHARACTERS_PER_TOKEN
    while True:
        tally = _Tally()
        chosen = _sample(_present(corpus.documents(PASSAGE_CHARACTERS), tally), budget, seed)
        windows, origins = _windows(_tokenize(chosen, tokenizer, tally), length)
        if len(windows) >= samples or tally.tokenized == tally.met:
            break
        budget *= 4
    order = np.random.default_rng(seed).permutation(len(windows))[:samples]
    return windows[order], origins[order], tally


def _present(documents: Iterable[Document | None], tally: _Tally) -> Iterator[Document]:
    for document in documents:
        if document is None:
            tally.skipped += 1
        else:
            tally.met += 1
            yield document


def _sample(documents: Iterable[Document], budget: int, seed: int) -> list[Document]:
    """A uniform sample of documents of `budget` characters or a little more, in order, in one reading.

    Every document draws a random key; those with the smallest keys are kept.
    """
    generator = random.Random(seed)
    kept: list[tuple[float, int, Document]] = []
    characters = 0
    for position, document in enumerate(documents):
        heapq.heappush(kept, (-generator.random(), position, document))
        characters += len(document.text)
        while characters - len(kept[0][2].text) >= budget:
            characters -= len(heapq.heappop(kept)[2].text)
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[1])]


def _windows(pieces: Iterable[np.ndarray], length: int, enough: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive windows of the stream and the number of each token's piece, both int64 [windows, length].

    Stops reading at `enough` windows.
    """
    gathered: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        gathered.append(piece)
        count += len(piece)
        if enough is not None and count >= enough * length:
            break
    whole = count // length if enough is None else min(enough, count // length)
    stream = np.concatenate(gathered) if gathered else np.empty(0, dtype=np.int64)
    origins = np.repeat(np.arange(len(gathered)), [len(piece) for piece in gathered])
    end = whole * length
    return stream[:end].reshape(whole, length), origins[:end].reshape(whole, length)


def _tokenize(documents: Iterable[Document], tokenizer: Any, tally: _Tally) -> Iterator[np.ndarray]:
    """The documents' tokens, int64 [tokens] each, with the special tokens that their kind asks for."""
    before, after = _special_tokens(tokenizer)
    tally.separator = _spelled(tokenizer, after + before)
    for group in _groups(documents):
        plain = tokenizer([document.text for document in group], add_special_tokens=False, verbose=False)["input_ids"]
        for document, tokens in zip(group, plain, strict=True):
            if document.kind not in tally.kinds:
                tally.kinds += (document.kind,)
            is_record = document.kind == "record"
            prefix = before if is_record or (document.kind == "running" and not tally.tokenized) else []
            suffix = after if is_record else []
            # A text that was written with its special tokens has them already.
            begins, ends = (tokens[: len(prefix)] == prefix != [], tokens[len(tokens) - len(suffix) :] == suffix != [])
            tally.surrounded += begins or ends
            tally.tokenized += 1
            yield np.array([*([] if begins else prefix), *tokens, *([] if ends else suffix)], dtype=np.int64)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Consecutive documents of about CHARACTERS_PER_CALL together."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= CHARACTERS_PER_CALL:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that go before and after every record: what the tokenizer adds by itself, else its eos after it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
    before, after = full[:start], full[start + len(plain) :]
    if not before and not after and tokenizer.eos_token_id is not None:
        return [], [tokenizer.eos_token_id]
    return before, after


def _spelled(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids)) or "nothing, since the tokenizer has no special tokens"


# ---- overlap


@dataclass(frozen=True)
class Overlap:
    """How much of the evaluation's text stands in the calibration text too.

    Attributes:
        shared: distinct n-grams of the evaluation that the calibration holds.
        total: distinct n-grams of the evaluation.
        n: tokens in an n-gram.
        example: the first shared n-gram, as text, or None.
    """

    shared: int
    total: int
    n: int
    example: str | None

    @property
    def fraction(self) -> float:
        return self.shared / self.total if self.total else 0.0

    def warning(self) -> str | None:
        """What to say when the evaluation is not independent, else None."""
        if self.fraction < WARNING_FRACTION:
            return None
        return (
            f"{self.fraction:.1%} of the evaluation's {self.n}-token sequences are in the calibration text too "
            f"(such as {self.example!r}): measured quality flatters the compressed model"
        )


def overlap(calibration: TokenSet, evaluation: TokenSet, tokenizer: Any, n: int = 13) -> Overlap:
    """Compare the windows really used, by the hashes of their n-grams of tokens (13, as in GPT-3's paper)."""
    n = min(n, calibration.tokens.shape[1], evaluation.tokens.shape[1])
    seen = np.unique(ngram_hashes(calibration.tokens, n))
    hashes, first = np.unique(ngram_hashes(evaluation.tokens, n), return_index=True)
    is_shared = np.isin(hashes, seen, assume_unique=True)
    example = None
    if is_shared.any():
        row, column = divmod(int(first[is_shared].min()), evaluation.tokens.shape[1] - n + 1)
        example = tokenizer.decode(evaluation.tokens[row, column : column + n].tolist())
    return Overlap(int(is_shared.sum()), len(hashes), n, example)


def ngram_hashes(tokens: torch.Tensor, n: int) -> np.ndarray:
    """A 64-bit hash of every n-gram inside a window, uint64 [samples * (length - n + 1)]."""
    factors = np.random.default_rng(n).integers(1, 2**63, size=n, dtype=np.uint64) * 2 + 1
    ids = _mixed(tokens.numpy().astype(np.uint64) + 1)
    count = ids.shape[1] - n + 1
    total = np.zeros((ids.shape[0], count), dtype=np.uint64)
    for offset, factor in enumerate(factors):
        total += ids[:, offset : offset + count] * factor
    return _mixed(total).ravel()


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread values over 64 bits (the finalizer of splitmix64)."""
    values = (values ^ (values >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> 27)) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> 31)
