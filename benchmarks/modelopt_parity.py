"""Is what `trt-int4` writes what NVIDIA's ModelOpt writes? Holds packer, reader, rules and files against it.

    python benchmarks/modelopt_parity.py

Makes an environment of its own in .venv-modelopt (1.8 GB) the first time. Writes
benchmarks/results/modelopt_parity.md.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import Peer, Row, report, table
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from passes.rtn import RTN
from targets.packing.output_pairs import pack_output_pairs
from targets.tensorrt_llm import TrtInt4, check_loadable
from targets.tensorrt_llm.reader import Header, read_folder, read_headers, unpack_nibbles

MODELOPT = Peer(".venv-modelopt", "modelopt_peer.py")
SHAPES = ((2, 64), (16, 64), (32, 128), (130, 320), (192, 576), (1536, 576))
GROUP_SIZES = (64, 128)
MODEL_NOTE = (
    "Model: a random two-layer Llama (width 256, MLP 512, 8 heads, 4 key-value heads). ModelOpt quantizes it with",
    "INT4_AWQ, llmc by rounding to nearest: files are compared by names, dtypes and shapes, values as the rows say.",
)


def main() -> int:
    versions = MODELOPT.run("versions")
    differences: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = list(packing_rows(folder))
        base = make_model(folder / "base")
        for group_size in GROUP_SIZES:
            rows += export_rows(folder, base, group_size, differences)
    return report("modelopt_parity", rows, render(versions, rows, differences))


def packing_rows(folder: Path) -> Iterator[Row]:
    codes = dict(cases())
    save_file(codes, folder / "codes.safetensors")
    MODELOPT.run("pack", folder / "codes.safetensors", folder / "packed.safetensors")
    theirs = load_file(folder / "packed.safetensors")
    packed = [name for name in codes if torch.equal(pack_output_pairs(codes[name]), theirs[name])]
    unpacked = [name for name in codes if np.array_equal(unpack_nibbles(theirs[name].numpy()), codes[name].numpy())]
    count, integers = len(codes), sum(tensor.numel() for tensor in codes.values())
    of = f"of {count} tensors ({integers:,} integers)"
    yield "packed bytes equal ModelOpt's pack_int4_in_uint8", f"{len(packed)} {of}", len(packed) == count
    yield "ModelOpt's bytes unpack to the integers", f"{len(unpacked)} {of}", len(unpacked) == count


def cases() -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        shape = (rows, columns)
        yield f"random {shape}", torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
        ramp = torch.arange(rows * columns).reshape(shape) % 16 - 8
        yield f"ramp {shape}", ramp.to(torch.int8)
        for edge in (-8, -1, 0, 7):
            yield f"{edge} {shape}", torch.full(shape, edge, dtype=torch.int8)
        extremes = torch.tensor([-8, 7], dtype=torch.int8).repeat(rows * columns // 2)
        yield f"extremes {shape}", extremes.reshape(shape)


def make_model(root: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes, **heads)).save_pretrained(root)
    save_file({"tokens": torch.randint(0, 320, (8, 32))}, root / "tokens")
    return root


def export_rows(folder: Path, base: Path, group_size: int, differences: dict[str, list[str]]) -> Iterator[Row]:
    """Files are compared in bfloat16, as they are deployed; values in float32, free of rounding."""
    label = f"group {group_size}: "
    awq = export(folder, base, "INT4_AWQ_CFG", "bfloat16", group_size)
    broken = check_loadable(awq)
    yield (
        label + "our loader rules on ModelOpt's folder",
        f"{len(broken)} broken {broken[:2] or ''}".strip(),
        not broken,
    )
    for kind, found in compare(awq, lower(base, folder / f"llmc-{group_size}", group_size)).items():
        differences.setdefault(kind, found)
        explained = kind.startswith("config") or not found
        yield label + kind, f"{len(found)} differences" + (", listed below" if found else ""), explained
    yield from value_rows(folder, base, group_size)


def value_rows(folder: Path, base: Path, group_size: int) -> Iterator[Row]:
    tokens = load_file(base / "tokens")["tokens"]
    plain = export(folder, base, "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "float32", group_size)
    error = distance(logits_of(base, plain, tokens), modelopt_logits(plain))
    label = f"group {group_size}: logits of ModelOpt's folder "
    yield label + "as we read it, next to ModelOpt's own", f"relative error {error:.1e}", error < 1e-5
    # Its AWQ export averages the activation scales of fused layers and rounds anew, so its own logits are not the
    # file's; what can be held is that the file, read by us, is as near to the float model as they are.
    awq = export(folder, base, "INT4_AWQ_CFG", "float32", group_size)
    exact = logits_of(base, None, tokens)
    read, own = distance(logits_of(base, awq, tokens), exact), distance(modelopt_logits(awq), exact)
    outcome = f"relative error {read:.3f} as we read it, {own:.3f} ModelOpt's own"
    yield label + "with AWQ, next to the float model's", outcome, read < 1.2 * own


def export(folder: Path, base: Path, recipe: str, dtype: str, group_size: int, tokens: Path | None = None) -> Path:
    """The folder that ModelOpt writes for `base`, its logits beside it; those of the file, if `tokens` are given."""
    out = folder / f"{recipe}-{dtype}-{group_size}"
    options = ["--recipe", recipe, "--dtype", dtype, "--group-size", group_size, "--tokens", tokens or base / "tokens"]
    MODELOPT.run("export", base, out, *options, *([] if tokens is None else ["--fused"]))
    return out


def modelopt_logits(exported: Path) -> torch.Tensor:
    return load_file(exported.with_suffix(".logits"))["logits"]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def logits_of(base: Path, exported: Path | None, tokens: torch.Tensor) -> torch.Tensor:
    """transformers' logits of `base`, in float32, with the weights that our reader takes from ModelOpt's folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if exported is not None:
        model.load_state_dict(dict(effective_weights(exported)))
    with torch.no_grad():
        return model(tokens).logits


def effective_weights(exported: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Values of the weights, activation scales multiplied in."""
    for name, weight in read_folder(exported):
        yield name, weight.dequantize() if isinstance(weight, QuantizedWeight) else weight


def lower(base: Path, out: Path, group_size: int) -> Path:
    """A folder of the same model by llmc: rounded to nearest, since only the files' shape is compared."""
    quiet = lambda what, done, total: None  # noqa: E731
    context = PassContext(out.with_suffix(".step"), {}, None, 0, quiet, [])
    step = RTN(group_size=group_size).apply(Checkpoint.open(base), context)
    out.mkdir()
    TrtInt4().lower(step, out, quiet)
    return out


def compare(theirs: Path, ours: Path) -> dict[str, list[str]]:
    """Every difference between two folders, by kind."""
    tensors = [gather_headers(root) for root in (theirs, ours)]
    files = [{path.name: None for path in root.iterdir()} for root in (theirs, ours)]
    return {
        "file names": list(keys(*files)),
        "tensor names, dtypes and shapes": list(tensor_differences(*tensors)),
        "config: hf_quant_config.json": list(json_differences(theirs, ours, "hf_quant_config.json")),
        "config: config.json": list(json_differences(theirs, ours, "config.json")),
    }


def gather_headers(root: Path) -> dict[str, Header]:
    return {name: header for path in root.glob("*.safetensors") for name, header in read_headers(path).items()}


def keys(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name}: ModelOpt's only" for name in theirs if name not in ours)
    yield from (f"{name}: ours only" for name in ours if name not in theirs)


def tensor_differences(theirs: Mapping[str, Header], ours: Mapping[str, Header]) -> Iterator[str]:
    yield from keys(theirs, ours)
    for name in theirs.keys() & ours.keys():
        pair = [(info.dtype, info.shape) for info in (theirs[name], ours[name])]
        if pair[0] != pair[1]:
            yield f"{name}: ModelOpt {pair[0]}, ours {pair[1]}"


def json_differences(theirs: Path, ours: Path, name: str) -> Iterator[str]:
    flat = [flatten(json.loads((root / name).read_text())) for root in (theirs, ours)]
    yield from (f"`{key}`: ModelOpt's only, {flat[0][key]}" for key in flat[0].keys() - flat[1].keys())
    yield from (f"`{key}`: ours only, {flat[1][key]}" for key in flat[1].keys() - flat[0].keys())
    for key in flat[0].keys() & flat[1].keys():
        if flat[0][key] != flat[1][key]:
            yield f"`{key}`: ModelOpt {flat[0][key]}, ours {flat[1][key]}"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: json.dumps(inner)}
    return found


def render(versions: str, rows: list[Row], differences: Mapping[str, list[str]]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield from ("# trt-int4 next to ModelOpt", "", "`python benchmarks/modelopt_parity.py`", "")
    yield from (f"Peer: {versions}. Ours: {ours}. CPU only.", "", *table(rows), "", *MODEL_NOTE)
    for kind, found in differences.items():
        yield from ("", f"## Differences in {kind}", "", *(f"- {line}" for line in sorted(found) or ["none"]))


if __name__ == "__main__":
    sys.exit(main())
