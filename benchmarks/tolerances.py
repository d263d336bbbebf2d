"""How far apart are the logits of one artifact when threads, instruction set or graph optimization are others?

    python benchmarks/tolerances.py [--model FOLDER] [--rows NAME ...] [--threads 1 2 4]

Each artifact is run as `llmc verify` runs it, in a process of its own for every setting, along the tokens that the
first setting generated; a distance is the largest difference of a logit that verify keeps. Of torch, the instruction
set is chosen by ATEN_CPU_CAPABILITY (its own kernels), ONEDNN_MAX_CPU_ISA (oneDNN) and MKL_ENABLE_INSTRUCTIONS (MKL).
onnxruntime has no such switch: its graph optimization levels stand beside its threads. Prints a table and writes it to
benchmarks/results/tolerances.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from peer import BENCHMARKS

EXAMPLE = BENCHMARKS.parent / "examples" / "demo"
LEVEL = "LLMC_ORT_LEVEL"  # read by the process that runs an artifact
TORCH = {
    "ATen avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "all AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "all SSE4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
ORT = {
    f"graph level {level}": {LEVEL: level} for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED")
}


@dataclass(frozen=True)
class Row:
    """One artifact: a model in `dtype`, through passes, for a target."""

    target: str
    passes: tuple[str, ...] = ()
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return " ".join([self.target, *self.passes, self.dtype])


STATIC = "fp8:activations=static,scales=tensor,kv_cache=true"
W8A8 = "rtn:bits=8,group_size=channel,activations=dynamic"
ROWS = [
    *(Row("hf", (), dtype) for dtype in ("float32", "float16", "bfloat16")),
    *(Row("hf", ("rtn:group_size=32",), dtype) for dtype in ("float32", "float16", "bfloat16")),
    *(
        Row("hf", (spec,), dtype)
        for spec in (W8A8, STATIC, "nvfp4:activations=static")
        for dtype in ("float32", "bfloat16")
    ),
    Row("onnx-fp32"),
    Row("onnx-fp16"),
    Row("onnx-int4:accuracy_level=0", ("rtn:group_size=32",)),
    Row("onnx-int4", ("rtn:group_size=32",)),
    Row("onnx-int8", ("rtn:bits=8,group_size=32",)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--calibration", default=str(EXAMPLE / "calibration.txt"))
    parser.add_argument("--rows", nargs="*", help="only rows whose name begins so")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "tolerances.md")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--against", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        print(json.dumps(run(given.run, given.against)))
        return
    chosen = [row for row in ROWS if not given.rows or row.name.startswith(tuple(given.rows))]
    with tempfile.TemporaryDirectory() as scratch:
        found = {row.name: distances(row, given, Path(scratch)) for row in chosen}
    text = table(found, given)
    given.results.write_text(text)
    print(text)


def distances(row: Row, given: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Of each setting, the distance from the first one: one thread, everything that the processor has."""
    artifact = make(row, given, scratch)
    others = TORCH if row.target == "hf" else ORT
    settings = {f"{count} threads": {"OMP_NUM_THREADS": str(count)} for count in given.threads[1:]}
    settings |= {name: {"OMP_NUM_THREADS": str(given.threads[0]), **more} for name, more in others.items()}
    reference = scratch / "reference.json"
    reference.write_text(json.dumps(process(artifact, {"OMP_NUM_THREADS": str(given.threads[0])}, None)))
    found = {name: process(artifact, setting, reference)["distance"] for name, setting in settings.items()}
    print(row.name, {name: float(f"{value:.2g}") for name, value in found.items()}, file=sys.stderr, flush=True)
    return found


def make(row: Row, given: argparse.Namespace, scratch: Path) -> Path:
    """The artifact of a row, made by the command line."""
    model = recast(given.model, row.dtype, scratch)
    out = scratch / "run" / row.name.replace("/", "-").replace(" ", "-").replace(":", "-")
    words = [sys.executable, "-c", "from compressor.cli import main; main()", "compress", str(model)]
    words += ["-t", row.target, "-o", str(out), "--measure", "none"]
    for one in row.passes:
        words += ["--pass", one]
    if any("static" in one for one in row.passes):
        words += ["--calibration", given.calibration, "--samples", "8", "--length", "128"]
    recipe = words if row.passes else [*words, "--recipe", str(no_passes(model, row.target, scratch))]
    subprocess.run(recipe, check=True, stdout=subprocess.DEVNULL)
    return out / "artifact"


def no_passes(model: Path, target: str, scratch: Path) -> Path:
    """A recipe for the model as it is, which no command line spells for targets with a preset."""
    path = scratch / "recipe.yaml"
    path.write_text(json.dumps({"model": str(model), "target": target, "passes": []}))
    return path


def recast(model: Path, dtype: str, scratch: Path) -> Path:
    """The model in another dtype."""
    import torch

    from compressor.checkpoint import Checkpoint

    out = scratch / f"model-{dtype}"
    if not out.exists():
        Checkpoint.open(model).rewrite(out, lambda block: block, {"cast": dtype}, getattr(torch, dtype))
    return out


def process(artifact: Path, setting: dict[str, str], reference: Path | None) -> dict[str, float]:
    """What `run` gives in a process with these environment variables."""
    words = [sys.executable, __file__, "--run", str(artifact)]
    words += ["--against", str(reference)] if reference else []
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | setting)
    return json.loads(done.stdout.splitlines()[-1])


def run(root: Path, against: Path | None) -> dict[str, object]:
    """Record the probe of an artifact, or compare it with one; in the process that has the setting."""
    from pydantic import TypeAdapter

    from compressor.architecture import read_config, resolve
    from compressor.manifest import read_manifest
    from compressor.probe import Probe, compare, record
    from compressor.registry import make_target
    from compressor.target import Artifact

    manifest = read_manifest(root)
    target, artifact = make_target(manifest.target, manifest.options), Artifact(root, manifest.target)
    threads = int(os.environ["OMP_NUM_THREADS"])
    if manifest.target == "hf":
        import torch

        torch.set_num_threads(threads)
        session = target.open(artifact)
    else:
        set_level(os.environ.get(LEVEL, "ORT_ENABLE_ALL"))
        session = target.open(artifact, threads=threads)
    if against is None:
        return asdict(record(session, resolve(read_config(root)), target.tolerance(artifact)))
    probe = TypeAdapter(Probe).validate_json(against.read_text())
    return {"distance": compare(probe, session).distance}


def set_level(name: str) -> None:
    """Let onnxruntime optimize graphs as far as this level."""
    import onnxruntime

    original = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        made = original()
        made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
        return made

    onnxruntime.SessionOptions = options


def table(found: dict[str, dict[str, float]], given: argparse.Namespace) -> str:
    from compressor.checkpoint import Checkpoint
    from compressor.ledger import environment

    facts = environment()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    shape = Checkpoint.open(given.model).architecture
    lines = [
        "# Logits of one artifact under other settings",
        f"`python {' '.join(['benchmarks/tolerances.py', *sys.argv[1:]])}`",
        f"{facts['cpu']}, {packages}. Model: {shape.layers} layers, width {shape.hidden_size}, vocabulary "
        f"{shape.vocab_size}. The largest distance, in nats, from a run on {given.threads[0]} thread with every "
        "instruction that the processor has; 16 positions, of each the eight largest logits and the normalizer.",
    ]
    for kind in ("hf", "onnx"):
        rows = {name: one for name, one in found.items() if name.startswith(kind)}
        if rows:
            lines.append(grid(rows))
    return "\n\n".join(lines) + "\n"


def grid(rows: dict[str, dict[str, float]]) -> str:
    settings = list(next(iter(rows.values())))
    head = ["| artifact | " + " | ".join(settings) + " | largest |", "|---|" + "---:|" * (len(settings) + 1)]
    body = [
        f"| `{name}` | " + " | ".join(f"{one[setting]:.2g}" for setting in settings) + f" | {max(one.values()):.2g} |"
        for name, one in rows.items()
    ]
    return "\n".join(head + body)


if __name__ == "__main__":
    main()
