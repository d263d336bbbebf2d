"""What the numbers of a config.json may be: checked before anything is made of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compressor.errors import InputError

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
         "max_position_embeddings", "intermediate_size")  # fmt: skip
# Sizes that no tensor is compared with before lists and tables of their length are made.
LIMITS = {"num_hidden_layers": 10_000, "max_position_embeddings": 1 << 24}
LARGEST_SIZE = (1 << 31) - 1
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
LABELS = ("num_labels", "id2label", "label2id")  # of classifiers; transformers makes a list of as many as they say


def check_sizes(config: Mapping[str, Any], spelled: Mapping[str, str]) -> None:
    """See that the sizes of a raw config.json are positive and not beyond any model's, and its token ids are ids.

    Args:
        spelled: what the family calls a key, where it is not the usual name.

    Raises:
        InputError: one is not.
    """
    for key in SIZES:
        name = spelled.get(key, key)
        size, limit = config.get(name), LIMITS.get(key, LARGEST_SIZE)
        if size is not None and _is_number(size) and not 1 <= size <= limit:
            raise InputError(f"config.json says {name}: {size}, which is no size from 1 to {limit}.")
    for name in TOKENS:
        ids = config.get(name)
        for one in ids if isinstance(ids, list) else [ids]:
            if isinstance(one, int) and not -1 <= one <= LARGEST_SIZE:
                raise InputError(f"config.json says {name}: {one}, which is no token id.")


def check_padding(config: Mapping[str, Any], rows: int) -> None:
    """See that the padding token has a row in the embedding, without which transformers opens no model.

    Raises:
        InputError: it has none.
    """
    padding = config.get("pad_token_id")
    if isinstance(padding, int) and padding >= rows:
        raise InputError(
            f"config.json says pad_token_id: {padding}, and the embedding has {rows} rows.",
            "Give it the id of another token, or null.",
        )


def check_positive(**values: Any) -> None:
    """See that numbers of a config.json are positive and finite; None says that there is none.

    Raises:
        InputError: one is not.
    """
    for name, value in values.items():
        if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
            raise InputError(f"config.json says {name}: {value}, which is not a positive number.")


def check_heads(heads: int, kv_heads: int) -> None:
    """See that query heads share key and value heads evenly.

    Raises:
        InputError: they do not.
    """
    if heads % kv_heads:
        raise InputError(f"config.json says num_key_value_heads: {kv_heads}, which does not divide {heads} heads.")


def check_rotary(parameters: Mapping[str, Any]) -> None:
    """See that the parameters of a rotary embedding describe one.

    Raises:
        InputError: they do not.
    """
    for name, value in _numbers(parameters):
        if name == "partial_rotary_factor":
            if not (_is_number(value) and 0 < value <= 1):
                raise InputError(f"config.json says {name}: {value}, which is no share of a head above 0 and up to 1.")
        elif name == "rope_theta" or _is_number(value):
            check_positive(**{name: value})


def check_known(activation: str, rope_types: Iterable[str]) -> None:
    """See that transformers has a function for what a config.json names.

    Raises:
        InputError: it has none.
    """
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if activation not in ACT2FN:
        raise InputError(f"config.json names the activation {activation!r}, which transformers does not have.")
    for rope_type in rope_types:
        if rope_type not in {"default", *ROPE_INIT_FUNCTIONS}:
            raise InputError(f"config.json names the rope_type {rope_type!r}, which transformers does not have.")


def _numbers(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each parameter by its name; of a list, each entry. Some scaling rules have settings that may be 0 or None."""
    for name, value in parameters.items():
        if name in ("mscale", "mscale_all_dim") or value is None:
            continue
        yield from ((name, one) for one in (value if isinstance(value, list) else [value]))


def why_not(error: Exception) -> InputError:
    """What transformers says of a config.json that it cannot use, in one sentence with its whole reason."""
    words = " ".join((str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)).split())
    words = re.sub(r"Validation error for field '(\w+)': \w+: Field '\1' ", r"\1: ", words)
    words = re.sub(r"Class validation error for validator '(\w+)': \w+: ", "", words)
    return InputError(f"config.json cannot be used: {words.rstrip('.') or type(error).__name__}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
