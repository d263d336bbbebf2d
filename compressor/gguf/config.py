"""The config.json that a GGUF file's metadata describes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compressor.errors import InputError, nearest
from compressor.families import FAMILIES
from compressor.gguf.container import GgufFile

# llama.cpp's name of an architecture, and the family it is. Mistral models come as "llama": without a sliding
# window, which is how llama.cpp runs them, they are the same computation.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ROPE_FREQS = "rope_freqs.weight"
# Metadata that would change what the model computes, in ways that these families do not have.
FOREIGN = ("expert_count", "attention.sliding_window", "attention.scale", "attention.clamp_kqv", "logit_scale",
           "residual_scale", "embedding_scale", "attn_logit_softcapping", "final_logit_softcapping")  # fmt: skip
# What llama.cpp's converter assumes when it turns Llama 3.1's rope scaling into a tensor of factors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def build_config(file: GgufFile) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        InputError: the architecture is unknown, or the metadata asks for something that its family does not do.
    """
    if (parts := file.metadata.get("split.count", 1)) > 1:
        raise InputError(f"{file.path} is one of {parts} parts.", "Join them with `llama-gguf-split --merge` first.")
    name = _architecture(file)
    _refuse_foreign(file, name)
    heads = _key(file, "attention.head_count")
    config = {
        "model_type": ARCHITECTURES[name],
        "architectures": [FAMILIES[ARCHITECTURES[name]].architecture],
        "num_hidden_layers": _key(file, "block_count"),
        "hidden_size": _key(file, "embedding_length"),
        "intermediate_size": _key(file, "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _key(file, "attention.head_count_kv", heads),
        "head_dim": _head_dim(file, heads),
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(_key(file, "attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": _key(file, "context_length"),
        "rope_theta": _shortest(_key(file, "rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": _vocab_size(file),
        "dtype": "float32",
    }
    return config | _biases(file, name) | _rope_scaling(file, config) | special_ids(file)


def special_ids(file: GgufFile) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as the file names them."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: token for name, token in found.items() if token is not None}


def end_ids(file: GgufFile) -> list[int]:
    """Every token that ends a generation: eos, and end of turn or of message where the file names them."""
    ids = (file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return list(dict.fromkeys(token for token in ids if token is not None))


def _architecture(file: GgufFile) -> str:
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise InputError(
            f"{file.path} holds the unknown architecture {name!r}; {nearest(str(name), ARCHITECTURES)}",
            "Architectures that can be read: " + ", ".join(ARCHITECTURES) + ".",
        )
    return str(name)


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


def _refuse_foreign(file: GgufFile, name: str) -> None:
    for key in FOREIGN:
        value = file.metadata.get(f"{name}.{key}")
        if value:
            raise InputError(f"{file.path} sets {name}.{key} = {value}, which a {name} model here does not have.")


def _head_dim(file: GgufFile, heads: int) -> int:
    rotary = _key(file, "rope.dimension_count", 0)
    head_dim = _key(file, "attention.key_length", rotary or _key(file, "embedding_length") // heads)
    widths = {head_dim, _key(file, "attention.value_length", head_dim), rotary or head_dim}
    if len(widths) > 1:
        raise InputError(f"{file.path}: key, value and rotary widths differ ({sorted(widths)}); they must be one.")
    return head_dim


def _vocab_size(file: GgufFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise InputError(f"{file.path} has no tensor token_embd.weight.")
    return table.shape[0]


def _biases(file: GgufFile, name: str) -> dict[str, bool]:
    """Bias switches of families that have them; which tensors there are decides."""
    family, found = FAMILIES[ARCHITECTURES[name]], {}
    for switch, tensor in ((family.qkv_bias, "attn_q"), (family.mlp_bias, "ffn_up")):
        if isinstance(switch, str):
            found[switch] = f"blk.0.{tensor}.bias" in file.tensors
    return found


def _rope_scaling(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    if ROPE_FREQS in file.tensors:
        return _llama3_scaling(file, config)
    kind = _key(file, "rope.scaling.type", "none")
    if kind == "none":
        return {}
    scaling = {"rope_type": kind, "factor": _shortest(_key(file, "rope.scaling.factor"))}
    known = {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned"}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = _key(file, "rope.scaling.original_context_length")
        known.add("rope.scaling.original_context_length")
    prefix = f"{file.metadata['general.architecture']}."
    other = [
        key
        for key in file.metadata
        if key.startswith(prefix + "rope.scaling.") and key.removeprefix(prefix) not in known
    ]
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
