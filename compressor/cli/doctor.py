"""`llmc doctor`: what is installed, and what can be done with it."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from compressor.cli.say import say

# package -> the extra that brings it and what it is for; None: always installed
PACKAGES = {
    "torch": (None, "running models block by block"),
    "transformers": (None, "layer code and tokenizers"),
    "compressed-tensors": (None, "the independent reader of steps"),
    "scipy": (None, "the tests of `llmc gate`"),
    "pyarrow": (None, "what was measured of every token; parquet files as text"),
    "onnxruntime": ("onnx", "ONNX targets: reading back and running"),
    "onnxruntime-genai": ("onnx", "generating with ONNX artifacts"),
    "tensorrt-rtx-cu13-bindings": ("trtrtx", "building TensorRT-RTX engines"),
    "gguf": ("gguf", "reading .gguf models; GGUF targets"),
    "datasets": ("data", "datasets ids as text"),
    "peft": ("lora", "training LoRA adapters; merging them needs nothing more"),
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(as_json: bool) -> None:
    """Show what is installed, which targets can be made, and which of them can run on this machine."""
    from compressor.cli import emit_json

    facts: dict[str, Any] = {
        "machine": _machine(),
        "packages": _packages(),
        "engines": _engines(),
        "targets": _targets(),
        "problems": _problems(),
    }
    if as_json:
        emit_json(facts)
        return
    for key, value in facts["machine"].items():
        say(f"{key:10} {value}")
    say()
    for name, entry in facts["packages"].items():
        _line(entry["version"] is not None, name, entry["version"] or f"missing: {entry['install']}", entry["purpose"])
    say()
    for name, entry in facts["engines"].items():
        _line(entry["missing"] is None, name, entry["place"] or "not found", entry["missing"] or entry["purpose"])
    say()
    for name, entry in facts["targets"].items():
        runs = entry["not_made"] or entry["not_run"] or "runs here"
        _line(runs == "runs here", name, "cannot be made" if entry["not_made"] else "can be made", runs)
    for problem in facts["problems"]:
        say()
        say(problem, fg="red")


def _line(good: bool, *cells: str) -> None:
    say("✓ " if good else "· ", fg="green" if good else "yellow", nl=False)
    say(f"{cells[0]:20} {cells[1]:24} {cells[2]}")


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": psutil.cpu_count(logical=False),
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} free",
        "disk": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free here",
    }


def _packages() -> dict[str, dict[str, Any]]:
    found = {}
    for name, (extra, purpose) in PACKAGES.items():
        install = f"pip install 'llmc-compiler[{extra}]'" if extra else "pip install llmc-compiler"
        try:
            installed: str | None = version(name)
        except PackageNotFoundError:
            installed = None
        found[name] = {"version": installed, "install": install, "purpose": purpose}
    return found


def _engines() -> dict[str, dict[str, Any]]:
    from compressor.cli.engines import known_engines
    from compressor.registry import PASSES, TARGETS, load, names

    targets = {name: load(TARGETS, "target", name).engine for name in names(TARGETS)}
    passes = {f"the pass {name}": load(PASSES, "pass", name).engine for name in names(PASSES)}
    found = {}
    for engine in known_engines():
        missing = engine.why_missing()
        purpose = "runs " + ", ".join(name for name, wanted in (targets | passes).items() if wanted == engine)
        place = str(engine.place()) if missing is None else None
        found[engine.name] = {"place": place, "missing": missing, "purpose": purpose}
    return found


def _targets() -> dict[str, dict[str, Any]]:
    from compressor.registry import TARGETS, make_target, names

    targets = {name: make_target(name, {}) for name in names(TARGETS)}
    return {name: {"not_made": one.why_not_made(), "not_run": one.why_not_run()} for name, one in targets.items()}


def _problems() -> list[str]:
    from compressor.errors import InputError
    from compressor.registry import check_installation

    try:
        check_installation()
    except InputError as error:
        return [f"{error} {error.hint}"]
    return []
