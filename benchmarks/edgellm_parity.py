"""Does NVIDIA's own reader get our integers out of a `trt-int4` folder? Asks TensorRT-Edge-LLM, which needs no GPU.

    python benchmarks/edgellm_parity.py

TensorRT-LLM itself loads a checkpoint on a GPU only. `tensorrt-edgellm-export`, the exporter of NVIDIA's runtime for
embedded devices, reads the same checkpoints on a CPU and writes ONNX with int4 nodes. Makes an environment of its own
in .venv-edgellm (2 GB) the first time. Writes benchmarks/results/edgellm_parity.md.
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
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from passes.rtn import RTN
from targets.tensorrt_llm import TrtInt4

EDGELLM = Peer(".venv-edgellm", "edgellm_peer.py")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
GROUP_SIZES = (64, 128)
# Its int4 kernel wants both widths to be multiples of 64.
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def main() -> int:
    versions = EDGELLM.run("versions")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [compare(Path(scratch), family, group) for family in FAMILIES for group in GROUP_SIZES]
    return report("edgellm_parity", rows, render(versions, rows))


def compare(scratch: Path, family: str, group_size: int) -> Row:
    """Lower one model, let the peer export it, and look for every integer and scale in its ONNX."""
    step, artifact = lower(scratch / f"{family}-{group_size}", family, group_size)
    EDGELLM.run("export", artifact, artifact.with_suffix(".onnx"))
    graph = onnx.load(artifact.with_suffix(".onnx") / "llm" / "model.onnx").graph
    found = {item.name.removeprefix("_model."): numpy_helper.to_array(item) for item in graph.initializer}
    names = [f"{layer}.weight" for layer in step.schemes]
    weights = {name: weight for name, weight in step.read(names).items() if isinstance(weight, QuantizedWeight)}
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


def lower(root: Path, family: str, group_size: int) -> tuple[Checkpoint, Path]:
    """A random model of the family, rounded to nearest, and its trt-int4 folder."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=320, tie_word_embeddings=False, **SIZES, **HEADS)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    byte_tokenizer().save_pretrained(root / "base")
    context = PassContext(root / "step", {}, None, 0, quiet, [])
    step = RTN(group_size=group_size).apply(Checkpoint.open(root / "base"), context)
    artifact = root / "artifact"
    artifact.mkdir()
    TrtInt4().lower(step, artifact, quiet)
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
        "# trt-int4 folders read by NVIDIA's TensorRT-Edge-LLM",
        "",
        "`python benchmarks/edgellm_parity.py`",
        "",
    )
    yield from (f"Peer: {versions}. Ours: {ours}. CPU only.", "", *table(rows), "")
    yield "Each random two-layer model is rounded to nearest by llmc, written by `trt-int4` and opened by"
    yield "`tensorrt-edgellm-export`. The int4 nodes of the ONNX it writes are compared bit for bit with the step's"
    yield "integers in the kernel's order (by its own function) and with the step's scales in float16."


if __name__ == "__main__":
    sys.exit(main())
