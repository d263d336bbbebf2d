"""The TensorRT-Edge-LLM side of edgellm_parity.py; runs in its own environment and exchanges files."""

from __future__ import annotations

import argparse
from pathlib import Path


def export(folder: Path, out: Path) -> None:
    """What `tensorrt-edgellm-export FOLDER OUT` does."""
    import subprocess
    import sys

    subprocess.run([Path(sys.executable).with_name("tensorrt-edgellm-export"), folder, out], check=True)


def swizzle(source: Path, out: Path) -> None:
    """int8 integers [N, K] in the order of the runtime's int4 kernel, by TensorRT-Edge-LLM's own function."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file
    from tensorrt_edgellm.checkpoint.repacking import repack_to_cutedsl_fragment

    integers = load_file(source)
    swizzled = {
        name: torch.from_numpy(repack_to_cutedsl_fragment(codes.numpy().astype(np.int16) + 8).copy())
        for name, codes in integers.items()
    }
    save_file(swizzled, out)


def versions() -> str:
    """What this environment holds."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("tensorrt-edgellm", "transformers", "torch"))


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("export", "swizzle"):
        two_paths = verbs.add_parser(verb)
        two_paths.add_argument("source", type=Path)
        two_paths.add_argument("out", type=Path)
    verbs.add_parser("versions")
    given = parser.parse_args()
    if given.verb == "versions":
        print(versions())
    else:
        {"export": export, "swizzle": swizzle}[given.verb](given.source, given.out)


if __name__ == "__main__":
    main()
