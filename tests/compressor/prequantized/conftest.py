"""Folders as GPTQModel and AutoAWQ leave them, written here element by element from the description of the formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

AWQ_COLUMN = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight columns lies in nibble i


@dataclass(frozen=True)
class Linear:
    """What one layer was given: unsigned integers [out, in], scales float16 and unsigned zeros [out, groups]."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray

    @classmethod
    def random(cls, shape: tuple[int, int], bits: int, group_size: int, symmetric: bool, seed: int) -> Linear:
        draw = np.random.default_rng(seed)
        groups = 1 if group_size == -1 else shape[1] // group_size
        # Scales with all eleven significant bits of float16, of which bfloat16 holds eight.
        scales = (draw.integers(1024, 2048, (shape[0], groups)) * 2.0**-20).astype(np.float16)
        zeros = draw.integers(1, 2**bits, (shape[0], groups))  # 0 has no place in version 1
        codes = draw.integers(0, 2**bits, shape)
        return cls(codes, scales, np.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros)


def words(elements: np.ndarray, bits: int) -> torch.Tensor:
    """Unsigned integers [..., n] to int32 words [..., n * bits / 32], element i at bit i * bits."""
    per_word = 32 // bits
    grouped = elements.astype(np.uint64).reshape(*elements.shape[:-1], -1, per_word)
    packed = sum(grouped[..., i] << np.uint64(bits * i) for i in range(per_word))
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32).copy())


def gptq_parts(linear: Linear, bits: int, version: int) -> dict[str, torch.Tensor]:
    width = linear.codes.shape[1] // linear.scales.shape[1]
    return {
        "qweight": words(linear.codes, bits).T.contiguous(),
        "qzeros": words((linear.zeros - (version == 1)).T, bits),
        "scales": torch.from_numpy(linear.scales.T.copy()),
        "g_idx": torch.arange(linear.codes.shape[1], dtype=torch.int32) // width,
    }


def awq_parts(linear: Linear) -> dict[str, torch.Tensor]:
    def interleaved(rows: np.ndarray) -> torch.Tensor:
        return words(rows.reshape(len(rows), -1, 8)[..., AWQ_COLUMN].reshape(rows.shape), 4)

    return {
        "qweight": interleaved(linear.codes.T),
        "qzeros": interleaved(linear.zeros.T),
        "scales": torch.from_numpy(linear.scales.T.copy()),
    }


@pytest.fixture
def pack_words() -> Callable[[np.ndarray, int], torch.Tensor]:
    return words


@pytest.fixture
def packed_model(tmp_path: Path, tiny_model: Callable[..., Path]) -> Callable[..., tuple[Path, dict[str, Linear]]]:
    """`packed_model("gptq", bits=4, ..., settings={...}, extra={...})`: a folder, and the linears in it.

    `settings` override the folder's quantization_config (None removes a key), `extra` its tensors; `layer_settings`
    gives layers whose name ends so other bits or group sizes.
    """

    def make(
        method: str = "gptq",
        *,
        bits: int = 4,
        group_size: int = 32,
        symmetric: bool = False,
        version: int = 2,
        dtype: torch.dtype = torch.float16,
        lm_head: bool = False,
        layer_settings: dict[str, tuple[int, int] | None] | None = None,
        settings: dict[str, Any] | None = None,
        extra: dict[str, torch.Tensor] | None = None,
        **model: Any,
    ) -> tuple[Path, dict[str, Linear]]:
        source = tiny_model(model.pop("family", "llama"), **model)
        root = tmp_path / "packed"
        shutil.copytree(source, root, dirs_exist_ok=True)
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
        linears = {}
        for seed, name in enumerate([*tensors, *(["lm_head.weight"] if lm_head else [])]):
            layer = name.removesuffix(".weight")
            if layer == name or not layer.endswith(("_proj", "lm_head") if lm_head else "_proj"):
                continue
            own = [value for ending, value in (layer_settings or {}).items() if layer.endswith(ending)]
            if own == [None]:
                continue
            own_bits, own_group = own[0] if own else (bits, group_size)
            shape = tuple(tensors.pop(name, tensors["model.embed_tokens.weight"]).shape)
            linears[layer] = Linear.random(shape, own_bits, own_group, symmetric, seed)
            parts = awq_parts(linears[layer]) if method == "awq" else gptq_parts(linears[layer], own_bits, version)
            tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        save_file(tensors | (extra or {}), root / "model.safetensors", metadata={"format": "pt"})
        written = _gptq_config(bits, group_size, symmetric, version) if method == "gptq" else _awq_config(group_size)
        _write_config(root, written | {"quant_method": method} | (settings or {}), dtype)
        return root, linears

    return make


def _gptq_config(bits: int, group_size: int, symmetric: bool, version: int) -> dict[str, Any]:
    return {
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "lm_head": False,
    }


def _awq_config(group_size: int) -> dict[str, Any]:
    return {"bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}


def _write_config(root: Path, settings: dict[str, Any], dtype: torch.dtype) -> None:
    config = json.loads((root / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = {key: value for key, value in settings.items() if value is not None}
    (root / "config.json").write_text(json.dumps(config))
