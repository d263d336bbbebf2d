"""What does a TensorRT-RTX engine hold, how large is it, and what does it take to build? Needs no GPU.

    python benchmarks/trtrtx.py --model smollm2=out/smollm2/model --calibration wikitext2/valid.txt

Every target is run through `llmc compress` with round-to-nearest weights, which decide no size. TensorRT-RTX comes from
an environment of its own in .venv-trtrtx (95 MB), made the first time. Writes benchmarks/results/trtrtx.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peer import BENCHMARKS, Peer
from process import Usage, measure

from compressor.architecture import read_config, resolve
from compressor.environment import environment
from compressor.files import write_whole
from targets.tensorrt_rtx.description import CODES, Description

VERSION = "1.7.1.116"
TRTRTX = Peer(
    ".venv-trtrtx",
    "trtrtx_peer.py",
    (["--no-deps", f"tensorrt-rtx-cu13-bindings=={VERSION}", f"tensorrt-rtx-cu13-libs=={VERSION}"],),
)
DEMO = BENCHMARKS.parent / "examples" / "demo" / "model"
STATIC = "rtn:bits=8,group_size=channel,activations=static"
RUNS = (
    ("trtrtx-int4", "rtn:group_size=64"),
    ("trtrtx-int4", "rtn:group_size=channel"),
    ("trtrtx-int8", "rtn:bits=8,group_size=channel"),
    ("trtrtx-int8", STATIC),
)
MIB = 1 << 20
NOTES = (
    "Integers are those of the linears, at four or eight bits, found in the engine byte for byte; other tensors are",
    "scales, norms, embedding and rotary tables found so. Code is all the rest: what the engine computes, and tensors",
    "that the builder changed, such as scales of weights that it multiplies by scales of activations. One engine is",
    "for all GPUs named. CPU seconds and peak memory are those of the whole command: rounding, writing, building,",
    "finding the weights, reading back. Nothing was run on a GPU.",
)


@dataclass(frozen=True)
class Built:
    """One artifact: its engine, the bytes of its ONNX weights, how many tensors these are, and the command's cost."""

    model: str
    target: str
    spec: str
    engine: Description
    onnx_bytes: int
    tensors: int
    float16_bytes: int
    usage: Usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="beside the demo model")
    parser.add_argument("--calibration", help="text for static activations; without it they are left out")
    parser.add_argument("--sm", default="86,89,120")
    parser.add_argument("--remark", default="", help="a sentence for the results, such as what else the machine did")
    given = parser.parse_args()
    models = {"demo": DEMO} | {name: Path(folder) for name, _, folder in (one.partition("=") for one in given.model)}
    runs = [run for run in RUNS if given.calibration or run[1] != STATIC]
    packages = TRTRTX.run()
    with tempfile.TemporaryDirectory() as scratch:
        built = [
            build(Path(scratch) / f"{name}-{number}", name, model, *run, given, packages)
            for name, model in models.items()
            for number, run in enumerate(runs)
        ]
    text = "\n".join(render(built, given)) + "\n"
    write_whole(BENCHMARKS / "results" / "trtrtx.md", text)
    print(text)


def build(out: Path, name: str, model: Path, target: str, spec: str, given: argparse.Namespace, packages: str) -> Built:
    """Compress one model for one target, and measure the command as a whole."""
    words = ["compress", model, "-t", target, "--sm", given.sm, "--pass", spec, "--measure", "none", "-o", out]
    if spec == STATIC:
        words += ["--calibration", given.calibration, "--samples", 8, "--length", 128]
    command = [str(Path(sys.executable).with_name("llmc")), *map(str, words)]
    usage = measure(command, out.with_suffix(".log"), {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1"})
    artifact = out / "artifact"
    manifest = json.loads((artifact / "llmc-manifest.json").read_text())
    return Built(
        name,
        target,
        spec,
        Description.read(artifact),
        (artifact / "model.onnx.data").stat().st_size,
        len(manifest["tensors"]["model.onnx.data"]),
        2 * resolve(read_config(model)).parameters,
        usage,
    )


def render(built: list[Built], given: argparse.Namespace) -> Iterator[str]:
    facts = environment()
    packages = {name: version for name, version in facts["packages"].items() if "onnx" in name or name == "torch"}
    yield "# TensorRT-RTX engines, built without a GPU"
    yield ""
    calibrated = f" --calibration {Path(given.calibration).name}" if given.calibration else ""
    names = "".join(f" --model {one.partition('=')[0]}=..." for one in given.model)
    yield f"`python benchmarks/trtrtx.py{names}{calibrated} --sm {given.sm}`"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield f"TensorRT-RTX {VERSION}, {versions}. {facts['cpu']}, one thread, no GPU. {given.remark}".strip()
    yield ""
    yield (
        "| model | target | pass | engine MiB | of it integers | other tensors | code | engine / ONNX data | "
        "engine / float16 weights | tensors found bit for bit | CPU s | peak MiB |"
    )
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    yield from (line(one) for one in built)
    yield ""
    yield from NOTES


def line(one: Built) -> str:
    places = one.engine.weights
    integers = sum(place.length for name, place in places.items() if name.endswith(CODES))
    others = sum(place.length for name, place in places.items() if not name.endswith(CODES))
    size = one.engine.bytes
    figures = [f"{value / MIB:.1f}" for value in (size, integers, others, size - integers - others)]
    ratios = [f"{size / one.onnx_bytes:.2f}", f"{size / one.float16_bytes:.2f}"]
    cost = [f"{one.usage.cpu_s:.0f}", f"{one.usage.peak_rss_bytes / MIB:.0f}"]
    cells = [one.model, f"`{one.target}`", f"`{one.spec}`", *figures, *ratios, f"{len(places)} of {one.tensors}", *cost]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
