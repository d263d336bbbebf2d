"""Does NVIDIA's own reader get our numbers out of our folders? Asks TensorRT-Edge-LLM, which needs no GPU.

    python benchmarks/edgellm_parity.py

TensorRT-LLM itself loads a checkpoint on a GPU only. `tensorrt-edgellm-export`, the exporter of NVIDIA's runtime for
embedded devices, reads the same checkpoints on a CPU and writes ONNX with int4, fp8 and NVFP4 nodes. Makes an
environment of its own in .venv-edgellm (2 GB) the first time. Writes benchmarks/results/edgellm_parity.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from peer import Peer, Row, report, table
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.layout import pack_e2m1
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from compressor.registry import make_pass, make_target, parse_spec

EDGELLM = Peer(".venv-edgellm", "edgellm_peer.py")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
GROUP_SIZES = (64, 128)
FLOATS = {
    "FP8": ("trt-fp8", "fp8:activations=static,scales=tensor"),
    "NVFP4": ("trt-nvfp4", "nvfp4:activations=static"),
}
# Its int4 kernel wants both widths to be multiples of 64.
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def main() -> int:
    versions = EDGELLM.run("versions")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [compare(Path(scratch), family, group) for family in FAMILIES for group in GROUP_SIZES]
        rows += [compare_floats(Path(scratch) / kind, kind) for kind in FLOATS]
    return report("edgellm_parity", rows, render(versions, rows))


def compare(scratch: Path, family: str, group_size: int) -> Row:
    """Lower one model, let the peer export it, and look for every integer and scale in its ONNX."""
    step, artifact = lower(scratch / f"{family}-{group_size}", family, "trt-int4", f"rtn:group_size={group_size}")
    graph = exported(artifact)
    found = {item.name.removeprefix("_model."): numpy_helper.to_array(item) for item in graph.initializer}
    weights = quantized(step)
    codes, swizzled = artifact.with_suffix(".codes"), artifact.with_suffix(".swizzled")
    save_file({name: weight.codes for name, weight in weights.items()}, codes)
    EDGELLM.run("swizzle", codes, swizzled)
    wanted = load_file(swizzled)
    same = [
        name
        for name, weight in weights.items()
        if np.array_equal(found[name].ravel(), wanted[name].numpy().ravel())
        and np.array_equal(found[f"{name}_scale"], weight.scales.T.half().numpy())
    ]
    what = f"{family}, group {group_size}: integers and scales in NVIDIA's ONNX"
    return what, f"{len(same)} of {len(weights)} linears equal", len(same) == len(weights)


def compare_floats(scratch: Path, kind: str) -> Row:
    """The same with fp8 or NVFP4: codes and scales of every DequantizeLinear that gives a weight."""
    step, artifact = lower(scratch, "llama", *FLOATS[kind])
    graph, weights = exported(artifact), quantized(step)
    initializers = {item.name: item for item in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    equal: dict[str, bool] = {}
    for node in nodes.values():
        name = node.input[0].removeprefix("_model.")
        if not name.endswith(".weight"):
            continue
        scales = node.input[1]  # those of NVFP4 blocks come out of a node of their own
        stored = [node.input[0], *(nodes[scales].input if scales in nodes else [scales])]
        parts = parts_of(name)
        wanted = (of_nvfp4 if kind == "NVFP4" else of_fp8)([weights[part] for part in parts])
        equal |= dict.fromkeys(parts, [initializers[one].raw_data for one in stored] == wanted)
    same = sum(equal.values())
    what = f"llama, {kind}: codes and scales in NVIDIA's ONNX"
    return what, f"{same} of {len(weights)} linears equal", same == len(weights)


def parts_of(name: str) -> list[str]:
    """The weights that lie in a matrix of the peer's graph: it fuses q, k and v of NVFP4."""
    fused = "qkv_proj_fused"
    return [name.replace(fused, f"{part}_proj") for part in "qkv"] if fused in name else [name]


def of_nvfp4(parts: list[QuantizedWeight]) -> list[bytes]:
    """Bytes of codes, block scales and tensor scale of a matrix of these parts, which share the last."""
    codes = torch.cat([pack_e2m1(part.codes) for part in parts])
    scales = torch.cat([part.block_scales.codes for part in parts]).view(torch.uint8)
    tensor_scale = parts[0].block_scales.tensor_scale
    return [codes.numpy().tobytes(), scales.numpy().tobytes(), tensor_scale.numpy().tobytes()]


def of_fp8(parts: list[QuantizedWeight]) -> list[bytes]:
    (part,) = parts
    return [part.codes.view(torch.uint8).numpy().tobytes(), part.scales[0, 0].half().numpy().tobytes()]


def exported(artifact: Path) -> onnx.GraphProto:
    EDGELLM.run("export", artifact, artifact.with_suffix(".onnx"))
    return onnx.load(artifact.with_suffix(".onnx") / "llm" / "model.onnx").graph


def quantized(step: Checkpoint) -> dict[str, QuantizedWeight]:
    names = [f"{layer}.weight" for layer in step.schemes]
    return {name: weight for name, weight in step.read(names).items() if isinstance(weight, QuantizedWeight)}


def lower(root: Path, family: str, target: str, spec: str) -> tuple[Checkpoint, Path]:
    """A random model of the family, rounded by a pass, and its folder."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=320, tie_word_embeddings=False, **SIZES, **HEADS)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    byte_tokenizer().save_pretrained(root / "base")
    context = PassContext(root / "step", {}, torch.randint(0, 256, (4, 32)), 0, quiet, [])
    step = make_pass(*parse_spec(spec)).apply(Checkpoint.open(root / "base"), context)
    artifact = root / "artifact"
    artifact.mkdir()
    make_target(target, {}).lower(step, artifact, quiet)
    return step, artifact


def byte_tokenizer() -> object:
    """One token a byte; the exporter wants a tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def render(versions: str, rows: list[Row]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}, onnx {onnx.__version__}"
    yield from (
        "# Folders read by NVIDIA's TensorRT-Edge-LLM",
        "",
        "`python benchmarks/edgellm_parity.py`",
        "",
    )
    yield from (f"Peer: {versions}. Ours: {ours}. CPU only.", "", *table(rows), "")
    yield "Each random two-layer model is rounded by llmc, written by `trt-int4`, `trt-fp8` or `trt-nvfp4`, and opened"
    yield "by `tensorrt-edgellm-export`. The int4 nodes of the ONNX it writes are compared bit for bit with the step's"
    yield "integers in the kernel's order (by its own function) and with the step's scales in float16; codes and scales"
    yield "of fp8 and NVFP4 as bytes, the scale of the tensor too."


if __name__ == "__main__":
    sys.exit(main())
