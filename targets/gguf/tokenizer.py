"""A tokenizer as llama.cpp's metadata describes it.

Keys: ggml-org/ggml, docs/gguf.md. How they are read: ggml-org/llama.cpp, src/llama-vocab.cpp. Byte-level BPE is its
kind `gpt2`, with the merges; BPE that falls back to bytes is its kind `llama`, which merges by score as SentencePiece
does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.encoding import TEXTS, Encode, differences, edges
from compressor.errors import InputError
from compressor.gguf.container import GgufFile
from compressor.gguf.tokenizer import NOT_STRIPPING, PRE_TOKENIZERS, build_tokenizer
from compressor.tokenizer import default_template, load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # values of tokenizer.ggml.token_type
SPECIAL_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours -> llama.cpp's name
EOS, FURTHER_ENDS = "eos", ("eot", "eom")  # the latter where the model has more tokens that end a generation
CONTEXT = {"general.architecture": "llama", "llama.context_length": 1}  # of a file of which only the tokenizer is read
REMEDY = "Targets that ship the tokenizer as it is, such as vllm-int4 or hf, work."


def describe_tokenizer(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """The metadata of a transformers tokenizer, by key.

    Args:
        vocab_size: rows of the model's table; those that no token has become unused ones.

    Raises:
        InputError: it is of a kind that llama.cpp does not have, or has more tokens than the table has rows.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"A {type(tokenizer).__name__} has no tokenizer.json to describe for llama.cpp.", REMEDY)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    model, tokens = document["model"], _tokens(tokenizer, vocab_size)
    if model["type"] != "BPE":
        raise InputError(f"llama.cpp has no {model['type']} tokenizer for these models.", REMEDY)
    described = _sentencepiece(tokenizer, model, tokens) if model["byte_fallback"] else _byte_level(document)
    return {
        **{f"tokenizer.ggml.{key}": value for key, value in described.items()},
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": _token_types(document, tokens, described["model"] == "llama"),
        **{f"tokenizer.ggml.{key}": value for key, value in _special(tokenizer).items()},
        **_chat_template(tokenizer),
        **_stripping_name(document),
    }


def end_keys(ends: Sequence[int], eos: int | None) -> dict[str, int]:
    """Keys for the tokens that end a generation.

    Args:
        ends: all of them.
        eos: the tokenizer's own, which stays `eos`: chat templates write it.
    """
    names = FURTHER_ENDS if eos is not None else (EOS, *FURTHER_ENDS)
    others = [token for token in ends if token != eos]
    return {f"tokenizer.ggml.{name}_token_id": token for name, token in zip(names, others, strict=False)}


def lost_ends(ends: Sequence[int], tokenizer: Any) -> list[str]:
    """A note on the tokens that end a generation and have no key."""
    kept = {tokenizer.eos_token_id, *end_keys(ends, tokenizer.eos_token_id).values()}
    lost = tokenizer.convert_ids_to_tokens([token for token in ends if token not in kept])
    if not lost:
        return []
    room = f"a GGUF file has room for {1 + len(FURTHER_ENDS)} tokens that end a text"
    return [f"{room}; {', '.join(lost)} end{'s' * (len(lost) == 1)} it in the model too, and in llama.cpp only if it "
            "knows the name"]  # fmt: skip


def check_tokenizer(metadata: Mapping[str, Any], tokenizer: Any) -> None:
    """See that the tokenizer which the metadata describes reads text as the model's own.

    Raises:
        InputError: it does not.
    """
    encode = _encode(metadata)
    if found := differences(encode, tokenizer, TEXTS):
        raise InputError(f"The tokenizer splits text in a way that cannot be said to llama.cpp: {found[0]}.", REMEDY)


def edge_notes(metadata: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """A note where spaces at the ends of a text, or around special tokens, become other tokens than the model's."""
    found = differences(_encode(metadata), tokenizer, edges(tokenizer))
    return [f"llama.cpp reads some spaces otherwise than the model's tokenizer: {found[0]}"] if found else []


def tokenizer_problems(root: Path, vocab_size: int) -> list[str]:
    """Why the tokenizer of a model folder cannot be described; asked before any work."""
    tokenizer = load_tokenizer(root)
    try:
        check_tokenizer(CONTEXT | describe_tokenizer(tokenizer, vocab_size), tokenizer)
    except InputError as error:
        return [f"{error} {error.hint or ''}".strip()]
    return []


def _encode(metadata: Mapping[str, Any]) -> Encode:
    described = build_tokenizer(GgufFile(Path("model.gguf"), metadata, {}))
    return lambda text: described(text, verbose=False)["input_ids"]  # type: ignore[no-any-return]


def _tokens(tokenizer: Any, vocab_size: int) -> list[str]:
    named = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(named) >= vocab_size:
        raise InputError(f"The tokenizer names token {max(named)}, but the model's table has {vocab_size} rows.")
    return [named.get(index, f"[PAD{index}]") for index in range(vocab_size)]


def _token_types(document: Mapping[str, Any], tokens: list[str], with_bytes: bool) -> list[int]:
    known, unknown = document["model"]["vocab"], document["model"]["unk_token"]
    types = [NORMAL if token in known else UNUSED for token in tokens]
    for index, token in enumerate(tokens if with_bytes else ()):
        if token == unknown or (len(token) == 6 and token.startswith("<0x")):
            types[index] = UNKNOWN if token == unknown else BYTE
    for added in document["added_tokens"]:
        if types[added["id"]] != UNKNOWN:
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return types


def _byte_level(document: Mapping[str, Any]) -> dict[str, Any]:
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]]
    return {"model": "gpt2", "pre": _splitting_rule(document), "merges": merges}


def _splitting_rule(document: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which text is split before merges apply."""
    steps = document["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if kinds[-1:] == ["ByteLevel"] and set(kinds) <= {"Digits", "Split", "ByteLevel"}:
        patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
        found = (*patterns, *([None] if steps[-1]["use_regex"] else [])), "Digits" in kinds
        fitting = [name for name, rule in PRE_TOKENIZERS.items() if found == ((rule.pattern,), rule.digits)]
        ignores = bool(document["model"].get("ignore_merges"))
        for name in sorted(fitting, key=lambda name: PRE_TOKENIZERS[name].ignore_merges != ignores):
            return name
    raise InputError("The tokenizer splits text by a rule whose name in llama.cpp is not known here.", REMEDY)


def _sentencepiece(tokenizer: Any, model: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Scores that rank pieces as the merges do: the earlier a merge, the higher the score of what it makes."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
    scores = [-float(ranks.get(token, len(model["merges"]))) for token in tokens]
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": first.startswith("▁")}


def _special(tokenizer: Any) -> dict[str, Any]:
    """Ids of the special tokens, and which of them surround every text."""
    ids = {key: getattr(tokenizer, f"{key}_token_id") for key in SPECIAL_IDS}
    text = tokenizer("a")["input_ids"]
    found: dict[str, Any] = {f"{name}_token_id": ids[key] for key, name in SPECIAL_IDS.items() if ids[key] is not None}
    return found | {"add_bos_token": text[0] == ids["bos"], "add_eos_token": text[-1] == ids["eos"]}


def _stripping_name(document: Mapping[str, Any]) -> dict[str, str]:
    """The name by which llama.cpp knows that special tokens swallow the space behind them, as those of Phi-3 do."""
    added = {token["content"]: token["rstrip"] for token in document["added_tokens"]}
    stripping = {"</s>", *(token for token, strips in added.items() if strips)}
    is_like_phi = any(added.values()) and added.keys() >= {*NOT_STRIPPING, "</s>"}
    return {"general.name": "Phi-3"} if is_like_phi and stripping.isdisjoint(NOT_STRIPPING) else {}


def _chat_template(tokenizer: Any) -> dict[str, str]:
    template = default_template(tokenizer)
    return {"tokenizer.chat_template": template} if template else {}
