"""How far apart logits may be, by what a runtime computes with; in nats. See docs/verify.md.

Each is at least three times the largest distance between instruction sets, threads and graph optimization levels in
benchmarks/results/tolerances.md, where a model of eight layers was measured: deeper ones sum more. That of NVFP4
activations lies between the 2.5 that other last bits did and the 5.1 of a fault (benchmarks/results/faults.md).
"""

from __future__ import annotations

import torch

from compressor.target import Tolerance

ROUNDED = Tolerance(0.5, "activations are rounded to eight bits, after sums in another order")
ROUNDED_TO_FOUR = Tolerance(4.0, "activations are rounded to four bits, after sums in another order")
BY_DTYPE = {
    torch.float32: Tolerance(1e-3, "float32 sums are taken in another order"),
    torch.float16: Tolerance(0.1, "float16 activations are rounded to 11 bits, after sums in another order"),
    torch.bfloat16: Tolerance(0.5, "bfloat16 activations are rounded to 8 bits, after sums in another order"),
}
