"""Does a folder that ModelOpt quantized with AWQ go through as it is, and mean what ModelOpt computes?

    python benchmarks/modelopt_awq.py MODEL TEXT

ModelOpt quantizes MODEL with INT4_AWQ on some tokens of TEXT and exports it: in bfloat16, whose bits are compared, and
in float32, whose logits are. Uses the environment of modelopt_parity.py. Writes benchmarks/results/modelopt_awq.md.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from modelopt_numbers import load_all, quiet, same
from modelopt_parity import MODELOPT, distance, export, modelopt_logits
from peer import Row, report, table
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.source import open_model
from compressor.target import Artifact, Session
from compressor.tokenizer import load_tokenizer
from compressor.writer import copy_companions
from targets.onnx.qdq.target import OnnxQdqInt4
from targets.onnx.target import OnnxInt4

RECIPE, GROUP_SIZE = "INT4_AWQ_CFG", 64
SAMPLES, LENGTH = 8, 64
# The scales are exact in float32 alone, in which TensorRT-LLM's folder and onnx-int4 hold them in any case.
TARGETS = ("trt-int4", "onnx-int4", "onnx-qdq-int4:dtype=float32", "trtrtx-int4:dtype=float32")
NEAR = 1e-4  # relative, of float32 logits whose sums are taken in another order


def main() -> int:
    model, text = (Path(argument) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokens = write_tokens(model, text, folder / "tokens")
        rows = [*bit_rows(folder, model, tokens), *logit_rows(folder, model, tokens)]
    return report("modelopt_awq", rows, render(model, rows))


def write_tokens(model: Path, text: Path, out: Path) -> Path:
    ids = load_tokenizer(model)(text.read_text()[: 16 * SAMPLES * LENGTH])["input_ids"]
    save_file({"tokens": torch.tensor(ids[: SAMPLES * LENGTH]).view(SAMPLES, LENGTH)}, out)
    return out


def bit_rows(folder: Path, model: Path, tokens: Path) -> Iterator[Row]:
    theirs = export(folder, model, RECIPE, "bfloat16", GROUP_SIZE, tokens)
    copy_companions(model, theirs)  # its tokenizer, which the exporter leaves out
    stored = load_all(theirs)
    factors = {name: tensor for name, tensor in stored.items() if name.endswith("pre_quant_scale")}
    powers = sum(bool((tensor.float().frexp().mantissa == 0.5).all()) for tensor in factors.values())
    yield "layers with pre_quant_scale, of powers of two", f"{len(factors)}, {powers}", bool(factors) and not powers
    ours = compressed(theirs, "trt-int4", folder)
    found = load_all(ours / "artifact")
    equal = [name for name in stored if same(stored[name], found.get(name))]
    outcome = f"{len(equal)} of {len(stored.keys() | found.keys())}"
    yield "trt-int4: tensors equal in name, dtype, shape and bytes", outcome, len(equal) == len(stored.keys() | found)
    for target in TARGETS:
        run = ours if target == "trt-int4" else compressed(theirs, target, folder)
        verified = json.loads((run / "ledger.json").read_text())["artifact"]["verified"]
        count, mismatches = verified["weights"], len(verified["mismatches"])
        yield f"{target}: read back", f"{mismatches} of {count} weights changed", not mismatches


def compressed(source: Path, target: str, folder: Path) -> Path:
    out = folder / f"{source.name}-{target.partition(':')[0]}"
    command = [Path(sys.executable).with_name("llmc"), "compress", source, "--target", target, "--measure", "none"]
    subprocess.run([*command, "-o", out], check=True, stdout=subprocess.DEVNULL)
    return out


def logit_rows(folder: Path, model: Path, tokens: Path) -> Iterator[Row]:
    theirs = export(folder, model, RECIPE, "float32", GROUP_SIZE, tokens)
    wanted, read = modelopt_logits(theirs), load_file(tokens)["tokens"]
    step = open_model(str(theirs), folder / "import", progress=quiet).checkpoint
    held = sum(scheme.input_factors for scheme in step.schemes.values())
    yield "layers whose factors are held", f"{held} of {len(step.schemes)}", held > 0
    error = distance(torch_logits(step, read), wanted)
    yield "logits of the step in torch, next to ModelOpt's own", f"relative error {error:.1e}", error < NEAR
    for target, options in ((OnnxInt4(), {"accuracy_level": 0}), (OnnxQdqInt4(dtype="float32"), {})):
        artifact = Artifact(folder / f"lowered-{target.name}", target.name)
        artifact.root.mkdir()
        target.lower(step, artifact.root, quiet)
        error = distance(onnx_logits(target.open(artifact, **options), read), wanted)
        level = "".join(f", level {level}" for level in options.values())
        what = f"logits of {target.name} in onnxruntime{level}, next to ModelOpt's own"
        yield what, f"relative error {error:.1e}", error < NEAR


def torch_logits(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(tokens), decoder.head())


def onnx_logits(session: Session, tokens: torch.Tensor) -> torch.Tensor:
    with closing(session):
        rows = [np.concatenate([part.copy() for _, part in session.logits(row.numpy())]) for row in tokens]
    return torch.from_numpy(np.stack(rows))


def render(model: Path, rows: list[Row]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield from ("# A folder of ModelOpt's AWQ through llmc", "", "`python benchmarks/modelopt_awq.py MODEL TEXT`", "")
    yield from (f"Peer: {MODELOPT.run('versions')}. Ours: {ours}. CPU only.", "", *table(rows), "")
    sizes = f"groups of {GROUP_SIZE} on {SAMPLES} × {LENGTH} tokens"
    yield f"Model: {model.parent.name}/{model.name}. ModelOpt quantizes it with INT4_AWQ in {sizes} and exports it."
    yield "Bits are those of the folder in bfloat16, as it is deployed. Logits are of the folder in float32 on the same"
    yield "tokens, next to ModelOpt's model after its exporter has averaged and rounded anew what runtimes fuse."


if __name__ == "__main__":
    sys.exit(main())
