"""The machine and the packages that figures depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compressor import __version__

PACKAGES = (
    "torch",
    "transformers",
    "compressed-tensors",
    "onnxruntime",
    "onnxruntime-genai",
    "tensorrt-rtx-cu13-bindings",
)
RUNTIMES = (
    "transformers",
    "onnxruntime",
    "onnxruntime-genai",
    "openvino",
    "vllm",
    "xllamacpp",
    "tensorrt-llm",
    "tensorrt-rtx-cu13-bindings",
    "executorch",
)
CPU_INFO = Path("/proc/cpuinfo")
# Flags of Linux for the instructions that runtimes choose their kernels by, and round otherwise with.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimddp": "dot products",
    "i8mm": "I8MM",
    "sve": "SVE",
}


def environment() -> dict[str, Any]:
    """What the ledger says of it; `cpu` ends with its vector instructions, for clouds call unlike ones the same."""
    import psutil
    import torch

    packages = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "llmc": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": packages,
    }


def runtimes() -> dict[str, str]:
    """Versions of the runtimes that are installed here. Imports none of them."""
    return {name: found for name in RUNTIMES if (found := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    found = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(found)})" if found else name
