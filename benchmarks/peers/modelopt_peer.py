"""The ModelOpt side of modelopt_parity.py; runs in ModelOpt's own environment and exchanges safetensors files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def pack(source: Path, out: Path) -> None:
    """Pack every int8 tensor [N, K] of `source` with ModelOpt's packer, unit scales, blocks of 64."""
    import torch
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8
    from safetensors.torch import load_file, save_file

    packed = {}
    for name, codes in load_file(source).items():
        scales = torch.ones(codes.shape[0], codes.shape[1] // 64)
        packed[name] = pack_int4_in_uint8(codes.float(), scales, 64).contiguous()
    save_file(packed, out)


def export(model_folder: Path, out: Path, recipe: str, dtype: str, group_size: int, tokens_file: Path) -> None:
    """Quantize a model with one of ModelOpt's recipes, export it, and leave its quantized logits beside the folder."""
    import copy

    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tokens = load_file(tokens_file)["tokens"]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype)).eval()
    config = copy.deepcopy(getattr(mtq, recipe))
    _set_block_size(config, group_size)
    mtq.quantize(model, config, forward_loop=lambda quantizing: quantizing(tokens))
    with torch.no_grad():
        logits = model(tokens).logits.float().contiguous()
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=out)
    save_file({"logits": logits}, out.with_suffix(".logits"))


def export_numbers(cases: Path, tokens_file: Path) -> None:
    """In each folder of `cases`, export the model `float` to `modelopt`, with the scales that the file `numbers` gives.

    They are named `LAYER:KIND:weight`, `LAYER:KIND:input` and `ATTENTION.k_scale:cache`.
    """
    from safetensors.torch import load_file

    tokens = load_file(tokens_file)["tokens"]
    for folder in sorted(cases.iterdir()):
        _export_case(folder / "float", folder / "modelopt", load_file(folder / "numbers"), tokens)


def _export_case(model_folder: Path, out: Path, numbers: dict, tokens: Any) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
    quantizers = dict(_quantizers(numbers))
    entries = [{"quantizer_name": name, "cfg": cfg} for name, (cfg, _) in quantizers.items()]
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *entries], "algorithm": "max"}
    mtq.quantize(model, config, forward_loop=lambda quantizing: quantizing(tokens))
    for name, (_, scale) in quantizers.items():
        quantizer = model.get_submodule(name)
        if scale is not None:
            found = quantizer._amax
            del quantizer._amax
            quantizer.register_buffer("_amax", (scale * quantizer.maxbound).reshape(found.shape))
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=out)


def _quantizers(numbers: dict) -> Iterator[tuple[str, tuple[dict, Any]]]:
    """Name, settings and scale of each of ModelOpt's quantizers."""
    fp8 = {"num_bits": (4, 3)}
    for name, scale in numbers.items():
        layer, *kind = name.split(":")
        if kind == ["cache"]:
            attention, _, cached = layer.rpartition(".")
            yield f"{attention}.{cached[0]}_bmm_quantizer", (fp8, scale)
        elif kind == ["int4", "weight"]:
            group_size = 64  # of the one model that is compared
            yield f"{layer}.weight_quantizer", ({"num_bits": 4, "block_sizes": {-1: group_size}}, scale)
        elif kind == ["int8", "weight"]:
            yield f"{layer}.weight_quantizer", ({"num_bits": 8, "axis": 0}, scale)
        elif kind == ["fp8", "input"]:
            yield f"{layer}.input_quantizer", (fp8, scale)
        else:
            per_channel = scale.dim() > 0
            yield f"{layer}.weight_quantizer", (fp8 | ({"axis": 0} if per_channel else {}), scale)
            if per_channel:
                yield f"{layer}.input_quantizer", (fp8 | {"type": "dynamic", "block_sizes": {-1: None}}, None)


def versions() -> str:
    """What this environment holds."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("nvidia-modelopt", "transformers", "torch"))


def _set_block_size(config: dict, group_size: int) -> None:
    entries = config["quant_cfg"]
    for entry in entries if isinstance(entries, list) else entries.values():
        for part in (entry, entry.get("cfg") if isinstance(entry, dict) else None):
            if isinstance(part, dict) and "block_sizes" in part:
                part["block_sizes"][-1] = group_size


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("source", type=Path)
    packing.add_argument("out", type=Path)
    exporting = verbs.add_parser("export")
    exporting.add_argument("model", type=Path)
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--recipe", required=True)
    exporting.add_argument("--dtype", required=True)
    exporting.add_argument("--group-size", type=int, required=True)
    exporting.add_argument("--tokens", type=Path, required=True)
    numbers = verbs.add_parser("export-numbers")
    numbers.add_argument("cases", type=Path)
    numbers.add_argument("--tokens", type=Path, required=True)
    verbs.add_parser("versions")
    given = parser.parse_args()
    if given.verb == "pack":
        pack(given.source, given.out)
    elif given.verb == "versions":
        print(versions())
    elif given.verb == "export-numbers":
        export_numbers(given.cases, given.tokens)
    else:
        export(given.model, given.out, given.recipe, given.dtype, given.group_size, given.tokens)


if __name__ == "__main__":
    main()
