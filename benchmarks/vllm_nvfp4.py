"""Does vLLM read from a `vllm-nvfp4` folder what its step means? Asks its loader and its emulation of NVFP4.

    python benchmarks/vllm_nvfp4.py

vLLM has kernels for NVFP4 on GPUs, and an emulation of them in plain PyTorch for GPUs without. Here it is let run on a
CPU, in float32: in 16 bits, noise moves as many four-bit inputs to other codes as rounding them changes. Uses the
environment of vllm_parity.py. Writes benchmarks/results/vllm_nvfp4.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from peer import Row, report, table
from safetensors.torch import load_file, save_file
from vllm_parity import LENGTH, MODEL, VLLM, first_tokens, logprobs, lower

from compressor.checkpoint import Checkpoint

CASE = ("vllm-nvfp4:dtype=bfloat16", "nvfp4:activations=static")
NEARER = 4  # times, at the median, than the model whose weights and inputs are not rounded


def main() -> int:
    versions = VLLM.run("versions")
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(compare(Path(scratch) / "case"))
    return report("vllm_nvfp4", rows, render(versions, rows))


def compare(root: Path) -> Iterator[Row]:
    tokens = first_tokens()
    lower(root, *CASE, tokens)
    save_file({"tokens": tokens}, root / "tokens")
    VLLM.run("logprobs", root / "tokens", root / "logprobs", root / "artifact", "--dtype", "float32")
    answer = load_file(root / "logprobs")["logprobs"][0]
    served = logprobs(Checkpoint.open(root / "artifact"), tokens)
    wanted = gathered(served, tokens)
    differences = (answer[:, 0] - wanted).abs()
    rounding = (gathered(logprobs(Checkpoint.open(MODEL), tokens), tokens) - wanted).abs()
    same = int((answer[:, 1].long() == served.argmax(1)).sum())
    outcome = f"{spread(differences)}; most likely token equal {same} of {len(wanted)} times"
    yield "`vllm-nvfp4`, weights and inputs in NVFP4", outcome, bool(differences.median() * NEARER < rounding.median())
    yield "for comparison, the model that is not rounded", spread(rounding), True


def gathered(logprobs_of_all: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logprobs_of_all.gather(1, tokens[1:, None])[:, 0]


def spread(differences: torch.Tensor) -> str:
    median, mean, largest = float(differences.median()), float(differences.mean()), float(differences.max())
    return f"difference: median {median:.1e}, mean {mean:.4f}, largest {largest:.4f}"


def render(versions: str, rows: list[Row]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield from ("# A folder in NVFP4, served by vLLM's emulation", "", "`python benchmarks/vllm_nvfp4.py`", "")
    yield from (f"Peer: {versions}, on CPU in float32. Ours: {ours}.", "", *table(rows), "")
    yield f"The demo model is asked for the log-probability of {LENGTH - 1} tokens of a text. What it should be is"
    yield "computed in float32 by llmc's decoder. A four-bit input between two codes may go to the other one, since"
    yield "sums are taken in another order, so that some tokens differ. vLLM's kernels for GPUs were not run."


if __name__ == "__main__":
    sys.exit(main())
