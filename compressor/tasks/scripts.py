"""Words of a text in any script: metrics that were made for English take a Chinese sentence for one word, or for none.

Scripts without spaces between words are told by the names that Unicode gives their letters. Of these, characters stand
for words, as in the evaluation of MLQA (Lewis et al. 2020) and in sacrebleu's tokenizers `zh` and `char`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec

UNSPACED = frozenset({"CJK", "IDEOGRAPHIC", "BOPOMOFO", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
KANA = frozenset({"HIRAGANA", "KATAKANA"})
HAN = UNSPACED - KANA - {"THAI", "LAO", "KHMER", "MYANMAR"}
FEW = 0.1  # of the letters of a task: what is below does not decide how all of it is cut into words


@cache
def script(letter: str) -> str:
    """`LATIN`, `CYRILLIC`, `CJK` ...: the first word of a letter's name; empty for what is no letter."""
    if unicodedata.category(letter)[0] != "L":
        return ""
    return unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]


def is_latin(texts: Sequence[str]) -> bool:
    """Whether all letters of the texts are Latin ones: then the metrics' own rules hold."""
    return all(script(letter) in ("", "LATIN") for text in texts for letter in text)


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; of scripts without spaces, characters. Half and full width are one."""
    return list(_words(unicodedata.normalize("NFKC", text).lower()))


def _words(text: str) -> Iterator[str]:
    word = ""
    for letter in text:
        kind = unicodedata.category(letter)[0]
        # A mark goes with the letter that it is written on.
        if kind not in "LNM" or (kind != "M" and (script(letter) in UNSPACED or _is_unspaced(word))):
            if word:
                yield word
            word = letter if kind in "LN" else ""
        else:
            word += letter
    if word:
        yield word


def _is_unspaced(word: str) -> bool:
    return script(word[:1]) in UNSPACED if word else False


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """The tokenizer of sacrebleu that fits: `zh` for Chinese, `ja-mecab` for Japanese where it is installed, `char` for
    what else is written without spaces, and its default `13a`.
    """
    letters = Counter(found for text in texts for letter in text if (found := script(letter)))
    counts = {kind: sum(letters[one] for one in kind) for kind in (UNSPACED, HAN, KANA)}
    if counts[UNSPACED] < max(1, FEW * letters.total()):
        return "13a"
    if counts[KANA] >= FEW * counts[UNSPACED]:
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    return "zh" if counts[HAN] + counts[KANA] == counts[UNSPACED] else "char"
