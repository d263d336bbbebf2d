"""The config.json that a GGUF file's metadata describes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compressor.errors import InputError
from compressor.families import FAMILIES, Family
from compressor.gguf.architectures import ARCHITECTURES, GgufArchitecture
from compressor.gguf.container import GgufFile

ROPE_FREQS = "rope_freqs.weight"
ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_SHORT, ROPE_LONG)  # no parameters of the checkpoint
# Metadata that would change what the model computes, in ways that these families do not have.
FOREIGN = ("expert_count", "attention.scale", "attention.clamp_kqv", "logit_scale", "residual_scale",
           "embedding_scale")  # fmt: skip
WINDOW, WINDOW_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # of attention scores, of logits
NORM_EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
# What llama.cpp computes with where a file does not say it, and transformers too. A negative factor is none of its own.
# Source: llama.cpp, src/llama-hparams.h and src/llama-context.cpp.
YARN_DEFAULTS: dict[str, tuple[float, ...]] = {
    "yarn_beta_fast": (32.0,), "yarn_beta_slow": (1.0,), "yarn_attn_factor": (1.0,), "attn_factor": (1.0,),
    "yarn_log_multiplier": (0.0,)}  # fmt: skip
EXTRAPOLATION = {"yarn": (-1.0, 1.0), "linear": (-1.0, 0.0)}
# What llama.cpp's converter assumes when it turns Llama 3.1's rope scaling into a tensor of factors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def build_config(file: GgufFile) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        InputError: the architecture is unknown, or the metadata asks for something that its family does not do.
    """
    if (parts := file.metadata.get("split.count", 1)) > 1:
        raise InputError(f"{file.path} is one of {parts} parts.", "Join them with `llama-gguf-split --merge` first.")
    row = _architecture(file)
    family = FAMILIES[row.family]
    _refuse_foreign(file, row)
    _check_sizes(file)
    config = {
        "model_type": row.family,
        "architectures": [family.architecture],
        "num_hidden_layers": _key(file, "block_count"),
        "hidden_size": _key(file, "embedding_length"),
        family.intermediate_size: _key(file, "feed_forward_length"),
        family.activation: row.activations[0],
        family.norm_epsilon: _shortest(_key(file, NORM_EPSILON[family.norm])),
        "max_position_embeddings": _key(file, "context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": _vocab_size(file),
        "dtype": "float32",
    }
    config |= _heads(file, row) | _biases(file, family) | _windows(file, row) | _softcaps(file, row)
    if not family.modules.positions:
        config |= _rope(file, config)
    return _as_spelled(config | special_ids(file))


def special_ids(file: GgufFile) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as the file names them."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: token for name, token in found.items() if token is not None}


def end_ids(file: GgufFile) -> list[int]:
    """Every token that ends a generation: eos, and end of turn or of message where the file names them."""
    ids = (file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return list(dict.fromkeys(token for token in ids if token is not None))


def _architecture(file: GgufFile) -> GgufArchitecture:
    name = str(file.metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise InputError(
            f"{file.path} holds the architecture {name!r}, which cannot be read.",
            "Architectures that can: " + ", ".join(ARCHITECTURES) + ".",
        )
    return ARCHITECTURES[name]


def _as_spelled(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with keys as its family spells them: GPT-2 says `n_embd`."""
    from transformers import CONFIG_MAPPING

    spelled = CONFIG_MAPPING[config["model_type"]].attribute_map
    return {spelled.get(key, key): value for key, value in config.items()}


def _key(file: GgufFile, key: str, default: Any = None) -> Any:
    full = f"{file.metadata['general.architecture']}.{key}"
    value = file.metadata.get(full, default)
    if value is None:
        raise InputError(f"{file.path} has no {full} in its metadata.")
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise InputError(f"{file.path}: {full} differs between layers, which its family cannot express.")
        return value[0]
    return value


def _refuse_foreign(file: GgufFile, row: GgufArchitecture) -> None:
    family = FAMILIES[row.family]
    has = (family.attention_softcap, family.logit_softcap, row.says_window or None)
    absent = [key for key, setting in zip((*SOFTCAPS, WINDOW), has, strict=True) if setting is None]
    for key in (*FOREIGN, *absent):
        value = file.metadata.get(f"{row.name}.{key}")
        if value:
            raise InputError(
                f"{file.path} sets {row.name}.{key} = {value}, which a {row.name} model here does not have."
            )


def _check_sizes(file: GgufFile) -> None:
    """Refuse sizes that no file of so many tensors has, before lists of that length are made."""
    sizes = {key: _key(file, key) for key in ("block_count", "embedding_length", "attention.head_count")}
    for key, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise InputError(f"{file.path} says {key}: {size!r}, which is no size.")
    if sizes["block_count"] > len(file.tensors):
        raise InputError(
            f"{file.path} says block_count: {sizes['block_count']}, and holds {len(file.tensors)} tensors in all."
        )


def _heads(file: GgufFile, row: GgufArchitecture) -> dict[str, Any]:
    heads, width = _key(file, "attention.head_count"), _key(file, "embedding_length")
    kv_heads = _key(file, "attention.head_count_kv", heads)
    head_dim = _key(file, "attention.key_length", width // heads)
    rotary = _key(file, "rope.dimension_count", head_dim)
    turned = rotary if FAMILIES[row.family].modules.positions is None and not row.rotates_part else head_dim
    widths = {head_dim, _key(file, "attention.value_length", head_dim), turned}
    if len(widths) > 1:
        raise InputError(f"{file.path}: key, value and rotary widths differ ({sorted(widths)}); they must be one.")
    if FAMILIES[row.family].modules.positions:
        if (kv_heads, head_dim * heads) != (heads, width):
            raise InputError(f"{file.path}: a {row.name} model has heads of one kind, together as wide as the model.")
        return {"num_attention_heads": heads}
    found = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    if setting := FAMILIES[row.family].score_scale:
        found[setting] = row.score_width(_key(file, "block_count"), width, heads, head_dim)
    return found | ({"partial_rotary_factor": _part(rotary, head_dim)} if rotary != head_dim else {})


def _part(features: int, width: int) -> float:
    """The share that so many of a head's features are, rounded such that its product is not below them."""
    share = features / width
    return share if int(width * share) == features else math.nextafter(share, 1)


def _vocab_size(file: GgufFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise InputError(f"{file.path} has no tensor token_embd.weight.")
    return table.shape[0]


def _biases(file: GgufFile, family: Family) -> dict[str, bool]:
    """Bias switches of families that have them; which tensors there are decides."""
    found = {}
    for switch, tensor in ((family.qkv_bias, "attn_q"), (family.mlp_bias, "ffn_up")):
        if isinstance(switch, str):
            found[switch] = f"blk.0.{tensor}.bias" in file.tensors
    return found


def _windows(file: GgufFile, row: GgufArchitecture) -> dict[str, Any]:
    """The sliding window, and which layers have one where not all do."""
    if not row.says_window:
        return {}
    window = _key(file, WINDOW, 0)
    if row.window_period is None:
        return {"sliding_window": window or None}
    layers = range(_key(file, "block_count"))
    listed = file.metadata.get(f"{row.name}.{WINDOW_PATTERN}", row.window_period)
    slides = listed if isinstance(listed, list) else [(index + 1) % listed != 0 for index in layers]
    kinds = ("full_attention", "sliding_attention")
    found: dict[str, Any] = {"layer_types": [kinds[bool(window and one)] for one in slides]}
    return found | ({"sliding_window": window} if window else {})


def _softcaps(file: GgufFile, row: GgufArchitecture) -> dict[str, Any]:
    settings = (FAMILIES[row.family].attention_softcap, FAMILIES[row.family].logit_softcap)
    found = {}
    for setting, key, default in zip(settings, SOFTCAPS, row.softcaps, strict=True):
        if setting is not None:
            cap = file.metadata.get(f"{row.name}.{key}", default)
            found[setting] = _shortest(cap) if cap else None
    return found


def _rope(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """Bases and scaling of the rotary embedding."""
    theta = {"rope_theta": _shortest(_key(file, "rope.freq_base", 10000.0))}
    if ROPE_LONG in file.tensors:
        return theta | _longrope(file)
    scaling = _rope_scaling(file, config | theta)
    if not FAMILIES[config["model_type"]].rotary_by_layer_type:
        return theta | scaling
    whole = {"rope_type": "default"} | theta | scaling.get("rope_scaling", {})
    local = {"rope_type": "default", "rope_theta": _shortest(_key(file, "rope.freq_base_swa", 10000.0))}
    return {"rope_parameters": {"full_attention": whole, "sliding_attention": local}}


def _longrope(file: GgufFile) -> dict[str, Any]:
    """Scaling by two lists of factors, one for texts that are longer than those of the first training."""
    short, long = ([_shortest(factor) for factor in file.read(name)] for name in (ROPE_SHORT, ROPE_LONG))
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long,
               "attention_factor": _shortest(_key(file, "rope.scaling.attn_factor", 1.0))}  # fmt: skip
    trained = _key(file, "rope.scaling.original_context_length")
    return {"rope_scaling": scaling, "original_max_position_embeddings": trained}


def _rope_scaling(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    if ROPE_FREQS in file.tensors:
        return _llama3_scaling(file, config)
    kind = _key(file, "rope.scaling.type", "none")
    if kind == "none":
        return {}
    scaling = {"rope_type": kind, "factor": _shortest(_key(file, "rope.scaling.factor"))}
    known = {"type", "factor", "finetuned"}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = _key(file, "rope.scaling.original_context_length")
        known.add("original_context_length")
    prefix = f"{file.metadata['general.architecture']}.rope.scaling."
    found = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    # Converters write these out where they say nothing: yarn's settings at their defaults, in models without yarn too.
    silent = YARN_DEFAULTS | {"yarn_ext_factor": EXTRAPOLATION.get(kind, ())}
    other = [prefix + key for key, value in found.items() if key not in known and value not in silent.get(key, ())]
    if kind not in ("linear", "yarn") or other:
        raise InputError(
            f"{file.path} scales rotary positions in a way that cannot be read ({kind}, {', '.join(other)})."
        )
    return {"rope_scaling": scaling}


def _llama3_scaling(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3.1's rope scaling, recovered from the factors by which llama.cpp divides the frequencies."""
    factors = file.read(ROPE_FREQS).astype(np.float64)
    factor = _shortest(factors.max())
    if not np.allclose(factors, llama3_factors(config["rope_theta"], config["head_dim"], factor), rtol=1e-5):
        raise InputError(
            f"{file.path}: {ROPE_FREQS} does not follow the rule of Llama 3.1, the only one that can be read."
        )
    return {} if factor == 1.0 else {"rope_scaling": {"rope_type": "llama3", "factor": factor} | LLAMA3}


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """By how much each rotary frequency is divided in Llama 3.1, float64 [head_dim / 2]."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = (LLAMA3["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    return 1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: what the original config.json said."""
    return float(str(np.float32(value)))
