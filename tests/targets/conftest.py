"""Fixtures for target tests: quantized step folders of tiny models, and lowering as the pipeline does it.

Models and step folders are made once and shared between tests, which only read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

from compressor.checkpoint import Block, Checkpoint
from compressor.ledger import Verification
from compressor.nvfp4 import BlockScales
from compressor.quantized import FP8, FP8_LARGEST, QuantizedWeight, Scheme, shared_scale
from compressor.target import Artifact, Target
from compressor.verify import verify


def round_to_nearest(weight: torch.Tensor, scheme: Scheme, shared_scales: bool) -> QuantizedWeight:
    weight = weight.float()
    if scheme.type == "nf4":
        from passes.nf4 import quantize as with_bitsandbytes

        return with_bitsandbytes(weight, scheme.double_quant)
    fit_scale = shared_scale if shared_scales else lambda scales, bits: scales
    grouped = weight.view(weight.shape[0], -1, scheme.group_width(weight.shape[1]))
    static = scheme.activations is not None and not scheme.activations.dynamic
    # Small enough that some of the tiny models' activations are clipped.
    input_scale = torch.tensor(2.0**-7 if scheme.type == "float" else 2.0**-5) if static else None
    if scheme.kind == "nvfp4":
        # One for all layers, and such that the scales of most blocks are normal numbers of e4m3.
        blocks = BlockScales((grouped.abs().amax(-1) / 6 * 2**10).to(FP8), torch.tensor(2.0**-10))
        codes = cast_to_fp4(grouped / blocks.values().unsqueeze(-1)).to(FP8).view_as(weight)
        small = None if input_scale is None else input_scale / 2**6
        return QuantizedWeight(codes, blocks.values(), None, scheme, small, blocks)
    if scheme.type == "float":
        peaks = weight.abs().amax(-1, keepdim=True)
        # One for all layers, so that those which a runtime fuses share it.
        peaks = torch.full_like(peaks, 0.5) if scheme.per_tensor else peaks
        scales = fit_scale(peaks / FP8_LARGEST, scheme.bits)
        return QuantizedWeight((weight / scales).clamp(-448, 448).to(FP8), scales, None, scheme, input_scale)
    if scheme.symmetric:
        scales = fit_scale(grouped.abs().amax(-1) / scheme.highest, scheme.bits)
        offset = torch.zeros_like(scales)
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = fit_scale((high - low) / (2**scheme.bits - 1), scheme.bits)
        offset = (scheme.lowest - low / scales).round().clamp(scheme.lowest, scheme.highest)
    codes = (grouped / scales.unsqueeze(-1)).round() + offset.unsqueeze(-1)
    codes = codes.clamp(scheme.lowest, scheme.highest).view_as(weight).to(torch.int8)
    return QuantizedWeight(codes, scales, None if scheme.symmetric else offset.to(torch.int8), scheme, input_scale)


@pytest.fixture(scope="session")
def made() -> dict[Any, Any]:
    """What earlier tests made, by what it was made from."""
    return {}


@pytest.fixture
def tiny_model(tiny_models: Callable[..., Path]) -> Callable[..., Path]:
    """The factory of the same name; equal arguments give the same folder."""
    return tiny_models


@pytest.fixture
def quantize(tmp_path_factory: pytest.TempPathFactory, made: dict[Any, Any]) -> Callable[..., Checkpoint]:
    """`quantize(root, scheme, but={"down_proj": other or None})`: every inner linear rounded to nearest.

    `but` gives layers whose name ends so another scheme, or none, and `lm_head` or `model.embed_tokens` one.
    `shared_scales=False` leaves float32 scales.
    `kv_cache=True` adds the scales of an fp8 key-value cache.
    """

    def make(
        root: Path,
        scheme: Scheme,
        but: Mapping[str, Scheme | None] | None = None,
        shared_scales: bool = True,
        kv_cache: bool = False,
    ) -> Checkpoint:
        key = (root, scheme, repr(but), shared_scales, kv_cache)
        if key not in made:
            out = tmp_path_factory.mktemp("step") / "01-rtn"
            made[key] = _rewrite(root, out, scheme, but or {}, shared_scales, kv_cache)
        return made[key]

    return make


def _rewrite(
    root: Path, out: Path, scheme: Scheme, but: Mapping[str, Scheme | None], shared_scales: bool, kv_cache: bool
) -> Checkpoint:
    def scheme_of(layer: str) -> Scheme | None:
        special = [other for ending, other in but.items() if layer.endswith(ending)]
        return special[0] if special else scheme

    inner = Checkpoint.open(root).architecture.linears().keys() - {"lm_head"}

    def edit(block: Block) -> Block:
        changed: dict[str, Any] = {}
        for name, weight in block.weights.items():
            layer = name.removesuffix(".weight")
            is_chosen = layer != name and (layer in inner or layer in but)
            wanted = scheme_of(layer) if is_chosen else None
            if wanted is not None and isinstance(weight, torch.Tensor):
                changed[name] = round_to_nearest(weight, wanted, shared_scales)
        if kv_cache and block.index is not None:
            # Keys and values are of order one: these scales clip some of them and round all.
            changed |= {f"model.{block.name}.self_attn.{x}_scale": torch.tensor([2.0**-8]) for x in "kv"}
        return block.with_weights(changed)

    return Checkpoint.open(root).rewrite(out, edit, {"pass": "rtn"})


@pytest.fixture
def multiplied(tmp_path: Path) -> Callable[..., Checkpoint]:
    """`multiplied(checkpoint, endings)`: quantized layers whose names end so multiply their inputs, in bfloat16 unless
    these numbers are taken `times` one.
    """

    def make(checkpoint: Checkpoint, *endings: str, times: float = 1.0) -> Checkpoint:
        def edit(block: Block) -> Block:
            changed: dict[str, Any] = {}
            for name, weight in block.weights.items():
                if name.removesuffix(".weight").endswith(endings) and isinstance(weight, QuantizedWeight):
                    factors = (torch.rand(weight.codes.shape[1], generator=generator) + 0.5).bfloat16().float() * times
                    scheme = replace(weight.scheme, input_factors=True)
                    changed[name] = replace(weight, scheme=scheme, input_factors=factors)
            return block.with_weights(changed)

        generator = torch.Generator().manual_seed(0)
        return checkpoint.rewrite(tmp_path / f"multiplied-{len(list(tmp_path.iterdir()))}", edit, {})

    return make


@pytest.fixture
def lower(tmp_path: Path) -> Callable[..., tuple[Artifact, list[str]]]:
    """`lower(target, checkpoint)`: the artifact in an own folder, and the notes."""

    def run(target: Target, checkpoint: Checkpoint) -> tuple[Artifact, list[str]]:
        out = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        notes = target.lower(checkpoint, out, lambda what, done, total: None)
        return Artifact(out, target.name), notes

    return run


@pytest.fixture
def verified() -> Callable[..., Verification]:
    """`verified(target, artifact, checkpoint)`: what the pipeline's read-back says."""
    return lambda target, artifact, checkpoint: verify(target, artifact, checkpoint, lambda done, total: None)


@pytest.fixture
def recast(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`recast(root, dtype, {name: tensor})`: the model folder in another dtype, some tensors replaced."""

    def make(root: Path, dtype: torch.dtype, replaced: Mapping[str, torch.Tensor] | None = None) -> Path:
        import json
        import shutil

        from safetensors.torch import load_file, save_file

        out = tmp_path_factory.mktemp("recast") / "model"
        shutil.copytree(root, out)
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(root / "model.safetensors").items()}
        save_file(tensors | dict(replaced or {}), out / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((root / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
        (out / "config.json").write_text(json.dumps(config))
        return out

    return make


@pytest.fixture
def flip_byte() -> Callable[[Path, str], None]:
    """`flip_byte(shard, tensor)`: one bit of one byte in the middle of the tensor."""

    def flip(path: Path, tensor: str) -> None:
        import json

        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        start, end = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
        content[8 + length + (start + end) // 2] ^= 0x10
        path.write_bytes(content)

    return flip


@pytest.fixture
def logits_of() -> Callable[..., torch.Tensor]:
    """transformers' logits of a folder, or of a checkpoint's dequantized weights in a float model."""
    tokens = torch.arange(0, 250, 10).view(1, -1)

    @torch.no_grad()
    def run(model: Path | Checkpoint, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        if isinstance(model, Checkpoint):
            return _float_model(model, dtype)(tokens).logits
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()(tokens).logits

    return run


def _float_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    from compressor.architecture import full_config

    model = AutoModelForCausalLM.from_config(full_config(checkpoint.config), dtype=dtype)
    weights = checkpoint.read(list(checkpoint.architecture.tensor_shapes()))
    dense = {name: w.dequantize() if isinstance(w, QuantizedWeight) else w for name, w in weights.items()}
    dense = {name: value.T if checkpoint.architecture.is_transposed(name) else value for name, value in dense.items()}
    missing = model.load_state_dict({name: tensor.to(dtype) for name, tensor in dense.items()}, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    return model.eval()
