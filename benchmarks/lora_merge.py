"""What merging a LoRA into a 7B-shaped checkpoint takes, next to copying its files.

    python benchmarks/lora_merge.py --scratch /tmp/lora-merge --rounds 2

Makes a Llama-2-7B-shaped checkpoint of random bfloat16 weights (13.5 GB) and an adapter on all of its linears, and lets
`cp` and the pass take turns; both start with the files out of the page cache and end when what they wrote is on disk.
The pass is a process of its own, from starting Python to the end. Everything is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from process import Usage, measure
from safetensors.torch import save_file

from compressor.architecture import resolve
from compressor.checkpoint import Checkpoint
from compressor.environment import environment
from compressor.pass_ import PassContext
from compressor.registry import make_pass
from compressor.writer import CheckpointWriter

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
GIB = 2**30


def main() -> None:
    """Parse the command line, make the files, take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "lora-merge")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--kind", choices=["lora", "dora"], default="lora")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--merge", nargs=3, type=Path, metavar=("MODEL", "ADAPTER", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge is not None:
        merge(*arguments.merge)
        return
    arguments.scratch.mkdir(parents=True)
    try:
        compare(arguments.scratch, arguments.layers, arguments.rank, arguments.kind, arguments.rounds)
    finally:
        shutil.rmtree(arguments.scratch)


def merge(model: Path, adapter: Path, out: Path) -> None:
    """Run the pass, and wait for the disk."""
    one, checkpoint = make_pass("lora-merge", {"adapter": [str(adapter)]}), Checkpoint.open(model)
    one.plan(checkpoint.architecture, checkpoint.schemes)
    one.apply(checkpoint, PassContext(out, {}, None, 0, lambda *_: None, []))
    for path in out.iterdir():
        _with_file(path, os.fsync)


def compare(scratch: Path, layers: int, rank: int, kind: str, rounds: int) -> None:
    """Make the files, let both take turns, and print what they took."""
    model, adapter = scratch / "model", scratch / "adapter"
    make_model(model, layers)
    make_adapter(adapter, model, rank, kind)
    copied, merged = [], []
    script = [sys.executable, str(Path(__file__).resolve()), "--merge", str(model), str(adapter)]
    for _ in range(rounds):
        out = scratch / "out"
        copied.append(_take(["sh", "-c", f"cp -r {model} {out} && sync {out}/*"], model, out, scratch))
        merged.append(_take([*script, str(out)], model, out, scratch))
    report(Checkpoint.open(model), layers, f"{kind}, rank {rank}, on all linears", copied, merged)


def report(checkpoint: Checkpoint, layers: int, adapter: str, copied: list[Usage], merged: list[Usage]) -> None:
    """Print the table in Markdown."""
    facts = environment()
    ratios = [copy.wall_s / merge.wall_s for copy, merge in zip(copied, merged, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{layers} layers, {checkpoint.nbytes / 1e9:.1f} GB of bfloat16; {adapter}. {len(ratios)} rounds in turns on")
    print(
        f"{facts['cpu']}, {torch.get_num_threads()} thread(s), {facts['memory_bytes'] / GIB:.0f} GiB, other work beside"
    )
    print(f"it: load average {os.getloadavg()[2]:.0f} on {facts['cores']} cores, this at nice {os.nice(0)}.\n")
    print("| | wall s | CPU s | peak RSS, MiB |\n|---|---:|---:|---:|")
    for name, usages in (("cp", copied), ("lora-merge", merged)):
        wall = ", ".join(f"{one.wall_s:.0f}" for one in usages)
        cpu = ", ".join(f"{one.cpu_s:.0f}" for one in usages)
        print(f"| {name} | {wall} | {cpu} | {max(one.peak_rss_bytes for one in usages) / 2**20:.0f} |")
    print(f"\nSpeed of the merge over that of the copy: {statistics.median(ratios):.2f} in the median ({spread}).")


def make_model(root: Path, layers: int) -> None:
    """A checkpoint of random weights; blocks share one draw, which changes no time."""
    config = {**SHAPE, "num_hidden_layers": layers}
    architecture = resolve(config)
    root.mkdir()
    writer, drawn = CheckpointWriter(root, architecture, torch.bfloat16), {}
    for name, shape in architecture.tensor_shapes().items():
        if shape not in drawn:
            drawn[shape] = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
        writer.add({name: drawn[shape].clone()})
    writer.finish(config, {})


def make_adapter(root: Path, model: Path, rank: int, kind: str) -> None:
    """A random adapter as peft saves one."""
    tensors = {}
    for name, (rows, columns) in Checkpoint.open(model).architecture.linears().items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = 0.01 * torch.randn(rank, columns)
        tensors[f"{key}.lora_B.weight"] = 0.01 * torch.randn(rows, rank)
        if kind == "dora":
            tensors[f"{key}.lora_magnitude_vector"] = torch.rand(rows) + 1
    root.mkdir()
    save_file(tensors, root / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "use_dora": kind == "dora"}
    (root / "adapter_config.json").write_text(json.dumps(config))


def _take(command: list[str], model: Path, out: Path, scratch: Path) -> Usage:
    """One turn: the model's files out of the cache first, what was written removed afterwards."""
    for path in model.iterdir():
        _with_file(path, lambda file: (os.fsync(file), os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)))
    usage = measure(command, scratch / "log", {})
    shutil.rmtree(out)
    return usage


def _with_file(path: Path, act) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        act(file)
    finally:
        os.close(file)


if __name__ == "__main__":
    main()
