"""The ModelOpt side of modelopt_parity.py; runs in ModelOpt's own environment and exchanges safetensors files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FP4_LARGEST, FP8_LARGEST = 6.0, 448.0


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


def export(
    model_folder: Path, out: Path, recipe: str, dtype: str, group_size: int, tokens_file: Path, fused: bool
) -> None:
    """Quantize a model with one of ModelOpt's recipes, export it, and leave its quantized logits beside the folder.

    The exporter rounds layers anew that a runtime fuses; `fused` takes the logits after that, so that they are those
    of what is written.
    """
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
    if fused:
        from modelopt.torch.export import unified_export_hf

        with torch.inference_mode():
            unified_export_hf.requantize_resmooth_fused_llm_layers(model)
        unified_export_hf.requantize_resmooth_fused_llm_layers = lambda model: None  # is done
    with torch.no_grad():
        logits = model(tokens).logits.float().contiguous()
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=out)
    save_file({"logits": logits}, out.with_suffix(".logits"))


def export_numbers(cases: Path, tokens_file: Path) -> None:
    """In each folder of `cases`, export the model `float` to `modelopt`, with the scales that the file `numbers` gives.

    They are named `LAYER:KIND:weight`, `LAYER:KIND:input`, `LAYER:nvfp4:tensor` and `ATTENTION.k_scale:cache`.
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
    for name, (_, largest) in quantizers.items():
        if largest is not None:
            _set_largest(model.get_submodule(name), *largest)
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=out)


def _set_largest(quantizer: Any, units: float | None, scale: Any, of_tensor: Any = None) -> None:
    """As if calibration had found the largest values that give these scales; `units` is the largest code.

    With `of_tensor`, scales are of NVFP4 blocks, and become fp8 numbers times that one.
    """
    from modelopt.torch.quantization.nn import NVFP4StaticQuantizer

    largest = scale * (quantizer.maxbound if units is None else units)
    found = getattr(quantizer, "_amax", None)
    if found is not None:
        del quantizer._amax
    shape = largest.shape if of_tensor is not None or found is None else found.shape
    quantizer.register_buffer("_amax", largest.reshape(shape))
    if of_tensor is not None:
        NVFP4StaticQuantizer.from_tensor_quantizer(quantizer, of_tensor * FP4_LARGEST * FP8_LARGEST)


def _quantizers(numbers: dict) -> Iterator[tuple[str, tuple[dict, tuple | None]]]:
    """Name, settings, and the arguments of `_set_largest` of each of ModelOpt's quantizers."""
    fp8 = {"num_bits": (4, 3)}
    for name, scale in numbers.items():
        layer, *kind = name.split(":")
        if kind == ["cache"]:
            attention, _, cached = layer.rpartition(".")
            yield f"{attention}.{cached[0]}_bmm_quantizer", (fp8, (None, scale))
        elif kind == ["int4", "weight"]:
            group_size = 64  # of the one model that is compared
            yield f"{layer}.weight_quantizer", ({"num_bits": 4, "block_sizes": {-1: group_size}}, (None, scale))
        elif kind == ["int8", "weight"]:
            yield f"{layer}.weight_quantizer", ({"num_bits": 8, "axis": 0}, (None, scale))
        elif kind == ["nvfp4", "weight"]:
            given = (FP4_LARGEST, scale, numbers[f"{layer}:nvfp4:tensor"])
            yield f"{layer}.weight_quantizer", (_nvfp4("static"), given)
        elif kind == ["nvfp4", "input"]:
            yield f"{layer}.input_quantizer", (_nvfp4("dynamic"), (FP4_LARGEST * FP8_LARGEST, scale))
        elif kind == ["fp8", "input"]:
            yield f"{layer}.input_quantizer", (fp8, (None, scale))
        elif kind == ["fp8", "weight"]:
            per_channel = scale.dim() > 0
            yield f"{layer}.weight_quantizer", (fp8 | ({"axis": 0} if per_channel else {}), (None, scale))
            if per_channel:
                yield f"{layer}.input_quantizer", (fp8 | {"type": "dynamic", "block_sizes": {-1: None}}, None)


def _nvfp4(blocks: str) -> dict:
    return {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": blocks, "scale_bits": (4, 3)}}


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
    exporting.add_argument("--fused", action="store_true")
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
        export(given.model, given.out, given.recipe, given.dtype, given.group_size, given.tokens, given.fused)


if __name__ == "__main__":
    main()
