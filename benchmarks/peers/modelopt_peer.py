"""The ModelOpt side of modelopt_parity.py; runs in ModelOpt's own environment and exchanges safetensors files."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    verbs.add_parser("versions")
    given = parser.parse_args()
    if given.verb == "pack":
        pack(given.source, given.out)
    elif given.verb == "versions":
        print(versions())
    else:
        export(given.model, given.out, given.recipe, given.dtype, given.group_size, given.tokens)


if __name__ == "__main__":
    main()
