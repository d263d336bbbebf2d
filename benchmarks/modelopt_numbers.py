"""The same numbers through ModelOpt's exporter and through ours: are the tensors equal, name by name?

    python benchmarks/modelopt_numbers.py

llmc quantizes a small model. Its values go to ModelOpt as a float model, with the scales as what ModelOpt's calibration
found, and both write their folder. Uses the environment of modelopt_parity.py. Writes
benchmarks/results/modelopt_numbers.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from modelopt_parity import MODELOPT, json_differences, make_model
from peer import Row, report, table
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.decoder import dense
from compressor.families import CACHE_SCALES
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from compressor.registry import make_pass, make_target, parse_spec
from targets.tensorrt_llm import check_loadable

MIXTURE = (
    "rtn:group_size=64,skip=*.self_attn.*+down_proj",
    "rtn:bits=8,group_size=channel,skip=*.self_attn.*+gate_proj+up_proj",
    "fp8:activations=static,scales=tensor,skip=*.mlp.*",
)
FLOATS = (
    "nvfp4:activations=static,skip=*.self_attn.*+down_proj",
    "nvfp4:skip=*.self_attn.*+gate_proj+up_proj",
    "fp8:activations=static,scales=tensor,skip=*.mlp.*",
)
CASES = {
    "W8A16": ("trt-int8", ("rtn:bits=8,group_size=channel",)),
    "FP8": ("trt-fp8", ("fp8:activations=static,scales=tensor",)),
    "FP8 with an fp8 cache": ("trt-fp8", ("fp8:activations=static,scales=tensor,kv_cache=true",)),
    "FP8_PER_CHANNEL_PER_TOKEN": ("trt-fp8", ("fp8",)),
    "W4A16_AWQ": ("trt-int4", ("rtn:group_size=64",)),
    "NVFP4": ("trt-nvfp4", ("nvfp4:activations=static",)),
    "NVFP4 with an fp8 cache": ("trt-nvfp4", ("nvfp4:activations=static", "fp8:skip=*,kv_cache=true")),
    "W4A16_NVFP4": ("trt-nvfp4", ("nvfp4",)),
    "MIXED_PRECISION": ("trt-int4", MIXTURE),
    "MIXED_PRECISION with NVFP4": ("trt-nvfp4", FLOATS),
}
AWQ_ONLY = ".pre_quant_scale"  # of ones: ModelOpt writes it for AWQ, the loader wants it of all int4


def main() -> int:
    versions = MODELOPT.run("versions")
    rows: list[Row] = []
    differences: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = make_model(Path(scratch) / "base")
        folders = {name: Path(scratch) / "cases" / name.replace(" ", "-") for name in CASES}
        for name, (target, passes) in CASES.items():
            write_ours(folders[name], base, target, passes)
        MODELOPT.run("export-numbers", Path(scratch) / "cases", "--tokens", base / "tokens")
        for name, folder in folders.items():
            rows += compare(name, folder / "modelopt", folder / "llmc", differences)
    return report("modelopt_numbers", rows, render(versions, rows, differences))


def write_ours(folder: Path, base: Path, target: str, passes: tuple[str, ...]) -> None:
    """Quantize, write the artifact to `llmc`, and what ModelOpt shall make `modelopt` of beside it."""
    (folder / "llmc").mkdir(parents=True)
    checkpoint = quantize(folder, base, passes)
    make_target(target, {}).lower(checkpoint, folder / "llmc", quiet)
    hand_over(checkpoint, base, folder)


def quantize(folder: Path, base: Path, passes: tuple[str, ...]) -> Checkpoint:
    tokens = load_file(base / "tokens")["tokens"]
    checkpoint = Checkpoint.open(base)
    for number, spec in enumerate(passes):
        context = PassContext(folder / f"step-{number}", {}, tokens, 0, quiet, [])
        checkpoint = make_pass(*parse_spec(spec)).apply(checkpoint, context)
    return checkpoint


def hand_over(checkpoint: Checkpoint, base: Path, folder: Path) -> None:
    """Write what ModelOpt gets: a float model of the values, and every scale, with the group size in its shape."""
    from transformers import AutoModelForCausalLM

    weights = checkpoint.read(list(checkpoint.parameters))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict({name: dense(weight) for name, weight in weights.items() if not name.endswith(CACHE_SCALES)})
    model.save_pretrained(folder / "float")
    numbers = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        if isinstance(weight, QuantizedWeight):
            kind = f"{layer}:{weight.scheme.kind}"
            numbers[f"{kind}:weight"] = weight.scales[0, 0].clone() if weight.scheme.per_tensor else weight.scales
            if weight.tensor_scale is not None:
                numbers[f"{kind}:tensor"] = weight.tensor_scale.clone()
            if weight.input_scale is not None:
                numbers[f"{kind}:input"] = weight.input_scale.clone()
        elif name.endswith(CACHE_SCALES):
            numbers[f"{name}:cache"] = weight.float().reshape(())
    save_file(numbers, folder / "numbers")


def compare(name: str, theirs: Path, ours: Path, differences: dict[str, list[str]]) -> Iterator[Row]:
    tensors = load_all(theirs), load_all(ours)
    names = tensors[0].keys() | {name for name in tensors[1] if not name.endswith(AWQ_ONLY)}
    equal = [one for one in names if same(tensors[0].get(one), tensors[1].get(one))]
    yield f"{name}: tensors equal in dtype, shape and bytes", f"{len(equal)} of {len(names)}", len(equal) == len(names)
    if "int4" not in target_of(name):  # ModelOpt's has no activation scale, so that the loader would not take it
        broken = check_loadable(theirs)
        yield f"{name}: our loader rules on ModelOpt's folder", f"{len(broken)} broken {broken[:1] or ''}", not broken
    differences[name] = sorted(json_differences(theirs, ours, "hf_quant_config.json"))
    for one in sorted(names - set(equal)):
        print(f"{name}: {one} differs", file=sys.stderr)


def target_of(name: str) -> str:
    return CASES[name][0]


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None or first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def render(versions: str, rows: list[Row], differences: Mapping[str, list[str]]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield from ("# The same numbers through ModelOpt and through llmc", "", "`python benchmarks/modelopt_numbers.py`")
    yield from ("", f"Peer: {versions}. Ours: {ours}. CPU only.", "", *table(rows), "")
    yield "llmc quantizes a random two-layer Llama (width 256, MLP 512, 8 heads, 4 key-value heads). ModelOpt gets the"
    yield "values as a bfloat16 model, and the scales for those that it would calibrate. MIXED_PRECISION has"
    yield "fp8 attention, int4 gate and up projections in groups of 64, and int8 down projections; with NVFP4, it has"
    yield "fp8 attention, NVFP4 gate and up projections, and down projections with NVFP4 weights alone."
    for name, found in differences.items():
        yield from ("", f"## Differences in hf_quant_config.json, {name}", "", *(f"- {line}" for line in found))


if __name__ == "__main__":
    sys.exit(main())
