"""Fixtures for the core's tests: GGUF files of tiny models, written by the `gguf` package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

QUANTIZABLE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head",
               "c_attn", "c_proj", "c_fc", "wte")  # fmt: skip
NORM_EPSILON = {"rms": "layer_norm_rms_epsilon", "layer": "layer_norm_epsilon"}


@pytest.fixture
def gguf_of(tmp_path: Path, byte_tokenizer: Any) -> Callable[..., Path]:
    """A factory: write a model folder as GGUF the way llama.cpp's converter does.

    `gguf_of(root, kind="F32", arch=None, extra={key: value}, tensors={name: array}, kinds={part: kind}) -> Path`;
    `extra` overrides metadata (None removes a key), `tensors` adds tensors under their GGUF names, `kinds` gives
    tensors whose name has this part another type. Those that `widen` names are rounded to it and stored as F32.
    """

    def make(
        root: Path,
        kind: str = "F32",
        arch: str | None = None,
        extra: dict | None = None,
        tensors: dict | None = None,
        kinds: dict | None = None,
        widen: tuple[str, ...] = (),
    ) -> Path:
        import gguf

        from compressor.architecture import read_config, resolve

        config = read_config(root)
        shape = resolve(config)
        arch = arch or config["model_type"].removesuffix("_text")
        path = tmp_path / f"tiny.{kind}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        values = _metadata(arch, shape, config) | _tokenizer(byte_tokenizer, shape.vocab_size) | (extra or {})
        for key, value in values.items():
            _add(writer, key, value)
        permuted = arch == "llama"
        (kind_of_model,) = (one for one, called in gguf.MODEL_ARCH_NAMES.items() if called == arch)
        names = gguf.get_tensor_name_map(kind_of_model, shape.layers)
        for name, tensor in load_file(root / "model.safetensors").items():
            array = tensor.float().numpy()
            if name.endswith("norm.weight"):
                array = array + np.float32(shape.norm_shift)
            if shape.is_transposed(name):
                array = array.T
            for part, heads in (("q_proj", shape.heads), ("k_proj", shape.kv_heads)):
                if permuted and part in name:
                    array = _paired(array, heads)
            chosen = kind if array.ndim > 1 and any(part in name for part in QUANTIZABLE) else "F32"
            chosen = next((other for part, other in (kinds or {}).items() if part in name), chosen)
            if any(part in name for part in widen):
                array, chosen = _rounded(array, chosen), "F32"
            _add_tensor(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), array, chosen)
        for name, array in (tensors or {}).items():
            _add_tensor(writer, name, array, "F32")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def _metadata(arch: str, shape: Any, config: dict) -> dict[str, Any]:
    return {
        "general.name": "tiny",
        f"{arch}.block_count": shape.layers,
        f"{arch}.context_length": shape.max_positions,
        f"{arch}.embedding_length": shape.hidden_size,
        f"{arch}.feed_forward_length": shape.intermediate_size,
        f"{arch}.attention.head_count": shape.heads,
        f"{arch}.attention.head_count_kv": shape.kv_heads,
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.{NORM_EPSILON[shape.norm]}": float(shape.norm_epsilon),
        f"{arch}.vocab_size": shape.vocab_size,
        **_rotary(arch, shape, config),
        **_gemma(arch, config),
    }


def _rotary(arch: str, shape: Any, config: dict) -> dict[str, Any]:
    if not shape.rotary_dim:
        return {}
    rope = config["rope_parameters"]
    found = {f"{arch}.rope.dimension_count": shape.rotary_dim}
    if local := rope.get("sliding_attention"):
        found[f"{arch}.rope.freq_base_swa"] = float(local["rope_theta"])
        rope = rope["full_attention"]
    return found | {f"{arch}.rope.freq_base": float(rope["rope_theta"])}


def _gemma(arch: str, config: dict) -> dict[str, Any]:
    caps = {key: config.get(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    window = config["sliding_window"] or 0 if arch in ("gemma2", "gemma3", "phi3") else None
    return {f"{arch}.attention.sliding_window": window} | {
        f"{arch}.{key}": None if cap is None or (arch == "gemma3" and "attn" in key) else float(cap)
        for key, cap in caps.items()
    }


def _tokenizer(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    known = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens = [*known, *(f"[unused{index}]" for index in range(len(known), vocab_size))]
    special = tokenizer.all_special_tokens
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in special else 5 if t.startswith("[unused") else 1 for t in tokens],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _add(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_tensor(writer: Any, name: str, array: np.ndarray, kind: str) -> None:
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), quantized), raw_dtype=quantized)


def _rounded(array: np.ndarray, kind: str) -> np.ndarray:
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    return gguf.dequantize(gguf.quantize(array, quantized), quantized).astype(np.float32)


def _paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection in llama.cpp's order: rotary halves interleaved into pairs."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
