"""The tokenizer that a GGUF file's metadata describes, as an ordinary tokenizer.json.

transformers can build one too, but takes the pre-tokenizer from the model's architecture instead of from
`tokenizer.ggml.pre` (so SmolLM2 loses its digit splitting) and mixes up bos and eos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.errors import InputError, listed
from compressor.gguf.container import GgufFile

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is split before merges apply. Without a `pattern`, by GPT-2's rule."""

    pattern: str | None = None
    digits: bool = False  # each digit on its own, before anything else
    ignore_merges: bool = False  # a piece that is a token needs no merges
    add_bos: bool = False  # unless the metadata says otherwise
    nfc: bool = False


LLAMA3 = PreTokenizer(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{SYMBOLS}", ignore_merges=True, add_bos=True)
QWEN2 = PreTokenizer(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{SYMBOLS}", nfc=True)
TEKKEN = PreTokenizer(
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ignore_merges=True,
    add_bos=True,
)
CL100K = PreTokenizer(LLAMA3.pattern)
ENDING = rf"{CONTRACTIONS}?"
O200K = PreTokenizer(
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# By `tokenizer.ggml.pre`. Patterns: the tokenizer.json of each model; names: llama.cpp, src/llama-vocab.cpp.
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(digits=True),
    "starcoder": PreTokenizer(digits=True),
    "refact": PreTokenizer(digits=True),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "tekken": TEKKEN,
    "dbrx": CL100K,
    "gpt-4o": O200K,
}
# llama.cpp swallows the space behind special tokens of models that are called so, these excepted.
STRIPPING_NAMES, NOT_STRIPPING = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")


def build_tokenizer(file: GgufFile) -> Any:
    """The transformers tokenizer of a GGUF file, with its chat template and special tokens.

    Raises:
        InputError: the file has no tokenizer, or one of a kind that cannot be built.
    """
    from transformers import PreTrainedTokenizerFast

    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in builders or "tokenizer.ggml.tokens" not in file.metadata:
        raise InputError(f"{file.path} has a tokenizer of kind {kind!r}; {listed(builders)}")
    tokenizer = builders[kind](file)
    tokenizer.add_tokens(_added_tokens(file))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=file.metadata[f"{file.metadata['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
        **_special_tokens(file),
    )
    if template := file.metadata.get("tokenizer.chat_template"):
        fast.chat_template = template
    return fast


def _field(file: GgufFile, key: str, default: Any = None) -> Any:
    return file.metadata.get(f"tokenizer.ggml.{key}", default)


def _special_tokens(file: GgufFile) -> dict[str, str]:
    """The texts of bos, eos, unk and pad, as far as the file names them."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = _field(file, "tokens")
    ids = {name: _field(file, f"{key}_token_id") for name, key in keys.items()}
    return {name: tokens[token] for name, token in ids.items() if token is not None and token < len(tokens)}


def _added_tokens(file: GgufFile) -> list[Any]:
    """Tokens that are found in text before it is split: control tokens, and those a user added."""
    from tokenizers import AddedToken

    kinds = _field(file, "token_type", [])
    name = str(file.metadata.get("general.name")).lower()
    stripped = any(one in name for one in STRIPPING_NAMES)
    return [
        AddedToken(
            token,
            normalized=False,
            special=kind != USER_DEFINED,
            rstrip=stripped and kind == CONTROL and token not in NOT_STRIPPING,
        )
        for token, kind in zip(_field(file, "tokens"), kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]


def _byte_level(file: GgufFile) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = _field(file, "pre", "default")
    if name not in PRE_TOKENIZERS:
        raise InputError(
            f"{file.path} splits text by the rule {name!r}, which is not known; {listed(PRE_TOKENIZERS)}",
            "Start from the model's original folder.",
        )
    pre = PRE_TOKENIZERS[name]
    merges = [_pair(merge) for merge in _field(file, "merges", [])]
    try:
        model = models.BPE(_vocabulary(file), merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the package raises nothing more specific
        raise InputError(f"{file.path} is damaged: its merges do not fit its vocabulary ({error}).") from error
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.pattern:
        steps.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    _surround(tokenizer, file, add_bos=pre.add_bos)
    return tokenizer


def _sentencepiece(file: GgufFile) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(file)
    merges = merges_by_score(vocabulary, _field(file, "scores", []))
    unknown = _special_tokens(file).get("unk_token")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = _field(file, "add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if prefix else steps)
    _surround(tokenizer, file, add_bos=True)
    return tokenizer


def _vocabulary(file: GgufFile) -> dict[str, int]:
    return {token: index for index, token in enumerate(_field(file, "tokens"))}


def _pair(merge: str) -> tuple[str, str]:
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def merges_by_score(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies: every split of a token into two, best score first."""
    found = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], index, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _surround(tokenizer: Any, file: GgufFile, add_bos: bool) -> None:
    """Add bos and eos around every text, where the metadata (or the kind's default) asks for it."""
    from tokenizers import processors

    wanted = (("bos", _field(file, "add_bos_token", add_bos)), ("eos", _field(file, "add_eos_token", False)))
    special = _special_tokens(file)
    around = {end: special[f"{end}_token"] for end, asked in wanted if asked and f"{end}_token" in special}
    if not around:
        return
    single = [*([around["bos"]] if "bos" in around else []), "$A", *([around["eos"]] if "eos" in around else [])]
    pair = [*single, *[part.replace("$A", "$B") + ":1" for part in single]]
    ids = [(token, _field(file, f"{end}_token_id")) for end, token in around.items()]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
