"""How far apart are the logits of one artifact when threads, instruction set or graph optimization are others?

    python benchmarks/tolerances.py [--model FOLDER] [--threads 2 4]

Each artifact is run as `llmc verify` runs it, along the tokens that it generated on one thread; a distance is the
largest difference of a logit that verify keeps. Of torch, the instruction set is chosen by ATEN_CPU_CAPABILITY (its own
kernels), ONEDNN_MAX_CPU_ISA (oneDNN) and MKL_ENABLE_INSTRUCTIONS (MKL), in a process of its own. onnxruntime has no
such switch: its graph optimization levels stand beside its threads. Prints a table and writes it to
benchmarks/results/tolerances.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import onnxruntime
import torch
from peer import BENCHMARKS
from pydantic import TypeAdapter

from compressor.architecture import read_config, resolve
from compressor.checkpoint import Checkpoint
from compressor.cli import main as llmc
from compressor.environment import environment
from compressor.files import write_whole
from compressor.manifest import read_manifest
from compressor.probe import Probe, compare, record
from compressor.registry import make_target
from compressor.target import Artifact, Session

DEMO = BENCHMARKS.parent / "examples" / "demo"
SETS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
LEVELS = {"no graph optimization": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}
INT4, INT8 = "rtn:group_size=32", "rtn:bits=8,group_size=32"
W8A8 = "rtn:bits=8,group_size=channel,activations=dynamic"
PROBES = TypeAdapter(dict[str, Probe])


@dataclass(frozen=True)
class Row:
    """One artifact: a model in `dtype`, through one pass or none, for a target."""

    target: str
    spec: str | None = None
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.target, self.spec, self.dtype]))


ROWS = [
    *(Row("hf", spec, dtype) for spec in (None, INT4) for dtype in ("float32", "float16", "bfloat16")),
    *(Row("hf", spec) for spec in (W8A8, "fp8", "nvfp4:activations=static")),
    Row("onnx-fp32"),
    Row("onnx-fp16"),
    Row("onnx-int4:accuracy_level=0", INT4),
    Row("onnx-int4", INT4),
    Row("onnx-int8", INT8),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO / "model")
    parser.add_argument("--calibration", default=str(DEMO / "calibration.txt"))
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "tolerances.md")
    parser.add_argument("--against", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.against is not None:
        print(json.dumps(distances(PROBES.validate_json(given.against.read_bytes()), threads=1)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(given, Path(scratch))
    text = table(found, given)
    write_whole(given.results, text)
    print(text)


def measured(given: argparse.Namespace, scratch: Path) -> dict[str, dict[str, float]]:
    """Row to setting to distance."""
    names = {str(make(row, given, scratch)): row.name for row in ROWS}
    probes = {path: recorded(path) for path in names}
    torches = {path: probe for path, probe in probes.items() if names[path].startswith("hf")}
    graphs = {path: probe for path, probe in probes.items() if path not in torches}
    settings = {f"{count} threads": distances(probes, threads=count) for count in given.threads}
    for name, level in LEVELS.items():
        with graph_level(level):
            settings[name] = distances(graphs, threads=1)
    kept = scratch / "probes.json"
    kept.write_bytes(PROBES.dump_json(torches))
    settings |= {name: other_process(kept, variables) for name, variables in SETS.items()}
    return {row: {name: one[path] for name, one in settings.items() if path in one} for path, row in names.items()}


def make(row: Row, given: argparse.Namespace, scratch: Path) -> Path:
    """The artifact of a row, made as the command line makes it."""
    model, out = scratch / f"model-{row.dtype}", scratch / f"run-{ROWS.index(row)}"
    if not model.exists():
        Checkpoint.open(given.model).rewrite(model, lambda block: block, {}, getattr(torch, row.dtype))
    recipe = {"model": str(model), "target": row.target, "passes": [row.spec] if row.spec else []}
    if row.spec and "static" in row.spec:
        recipe["calibration"] = {"texts": given.calibration, "samples": 4, "length": 64}
    (scratch / "recipe.yaml").write_text(json.dumps(recipe | {"measure": {"effort": "none"}}))
    try:
        with redirect_stdout(StringIO()):
            llmc(["compress", "--recipe", str(scratch / "recipe.yaml"), "-o", str(out), "--json"])
    except SystemExit as stop:
        if stop.code:
            raise
    return out / "artifact"


def opened(path: str, threads: int) -> Session:
    manifest = read_manifest(Path(path))
    target, artifact = make_target(manifest.target, manifest.options), Artifact(Path(path), manifest.target)
    if manifest.target != "hf":
        return target.open(artifact, threads=threads)
    torch.set_num_threads(threads)
    return target.open(artifact)


def recorded(path: str) -> Probe:
    manifest = read_manifest(Path(path))
    tolerance = make_target(manifest.target, manifest.options).tolerance(Artifact(Path(path), manifest.target))
    with closing(opened(path, threads=1)) as session:
        return record(session, resolve(read_config(Path(path))), tolerance)


def distances(probes: Mapping[str, Probe], threads: int) -> dict[str, float]:
    """How far each artifact is from what was recorded of it, under the setting of this process."""
    found = {}
    for path, probe in probes.items():
        with closing(opened(path, threads)) as session:
            found[path] = compare(probe, session).distance
    return found


def other_process(probes: Path, variables: Mapping[str, str]) -> dict[str, float]:
    words = [sys.executable, __file__, "--against", str(probes)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, **variables})
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def graph_level(name: str) -> Iterator[None]:
    """Let onnxruntime optimize graphs as far as this level."""
    original = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        made = original()
        made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
        return made

    onnxruntime.SessionOptions = options
    try:
        yield
    finally:
        onnxruntime.SessionOptions = original


def table(found: Mapping[str, Mapping[str, float]], given: argparse.Namespace) -> str:
    """The document of the results."""
    facts, shape = environment(), Checkpoint.open(given.model).architecture
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    parts = [
        "# Logits of one artifact under other settings",
        f"`python {' '.join(['benchmarks/tolerances.py', *sys.argv[1:]])}`",
        f"{facts['cpu']}, {packages}. Model: {shape.layers} layers, width {shape.hidden_size}, vocabulary "
        f"{shape.vocab_size}. The largest distance, in nats, from a run on one thread with every instruction that the "
        "processor has; 16 positions, of each the eight largest logits and the normalizer.",
    ]
    for kind in ("hf", "onnx"):
        parts.append(grid({name: one for name, one in found.items() if name.startswith(kind)}))
    return "\n\n".join(parts) + "\n"


def grid(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Artifacts down, settings across, the largest last."""
    settings = list(next(iter(rows.values())))
    lines = ["| artifact | " + " | ".join(settings) + " | largest |", "|---|" + "---:|" * (len(settings) + 1)]
    for name, one in rows.items():
        figures = [*(one[setting] for setting in settings), max(one.values())]
        lines.append(f"| `{name}` | " + " | ".join(f"{figure:.2g}" for figure in figures) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
