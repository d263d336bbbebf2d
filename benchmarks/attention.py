"""Is blocked attention in bfloat16 worth having next to torch's own? Time ratio and error of both.

    python benchmarks/attention.py [--threads 1] [--rounds 15]

Prints a table and writes it to benchmarks/results/attention.md. Error is that of the output against float64, relative.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peer import BENCHMARKS
from torch.nn.functional import scaled_dot_product_attention

from calibration.attention import blocked_attention
from compressor.environment import environment
from compressor.files import write_whole

# batch, heads, key-value heads, length, head width: SmolLM2-135M; a Llama of 1B at its calibration lengths.
SHAPES = [(8, 9, 3, 512, 64), (8, 32, 8, 512, 64), (2, 32, 8, 2048, 64), (2, 32, 8, 2048, 128)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "attention.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    facts = environment()
    lines = [
        "# Causal attention on calibration text, bfloat16",
        "",
        f"Printed by `benchmarks/attention.py --threads {given.threads} --rounds {given.rounds}` on {facts['cpu']}.",
        "Time is ours next to `scaled_dot_product_attention`, in turns: median, least and largest ratio.",
        "Error is against float64, relative.",
        "",
        "| batch × heads (kv) × length × width | torch ms | time × | torch's error | our error |",
        "|---|---:|---:|---:|---:|",
        *(_line(*shape, given.rounds) for shape in SHAPES),
    ]
    text = "\n".join(lines) + "\n"
    write_whole(given.results, text)
    print(text)


def _line(batch: int, heads: int, shared: int, length: int, width: int, rounds: int) -> str:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(batch, length, count, width).bfloat16().transpose(1, 2) for count in (heads, shared, shared)
    )

    def theirs() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)

    def ours() -> torch.Tensor:
        return blocked_attention(query, key, value, width**-0.5)

    exact = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    errors = [float((run().double() - exact).norm() / exact.norm()) for run in (theirs, ours)]
    times = np.array([[_seconds(theirs), _seconds(ours)] for _ in range(rounds)])
    ratios = times[:, 1] / times[:, 0]
    spread = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
    shape = f"{batch} × {heads} ({shared}) × {length} × {width}"
    return f"| {shape} | {1e3 * np.median(times[:, 0]):.0f} | {spread} | {errors[0]:.4f} | {errors[1]:.4f} |"


def _seconds(run: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
