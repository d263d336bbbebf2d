"""How close is NVFP4? What does the search of block scales gain, and what do tensor scales of powers of two cost?

    python benchmarks/nvfp4.py --model FOLDER --calibration TEXT --evaluation TEXT [--windows 12]

Each row is one checkpoint, judged on the same held-out windows as the original. Prints a table and writes it to
benchmarks/results/nvfp4.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from judging import linear_bits
from peer import BENCHMARKS

import passes.nvfp4
from calibration.dataset import load_tokens
from compressor.checkpoint import Checkpoint
from compressor.environment import environment
from compressor.files import write_whole
from compressor.measure.accuracy import Reference, Report, checkpoint_scores, summarize
from compressor.measure.statistics import mean
from compressor.nvfp4 import LARGEST, LARGEST_SCALE
from compressor.pass_ import PassContext
from compressor.registry import make_pass, parse_spec
from compressor.tokenizer import load_tokenizer

FIRST = "nvfp4"  # what the others are compared with, window by window
NOT_POWERS = " with tensor scales that are no powers of two"
ROWS = (
    FIRST,
    FIRST + NOT_POWERS,
    "nvfp4:scale_search=false",
    "nvfp4:activations=static",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "nvfp4.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    original, tokenizer = Checkpoint.open(given.model), load_tokenizer(given.model)
    calibration = load_tokens(given.calibration, tokenizer, samples=given.samples, length=given.length, seed=0)
    evaluation = load_tokens(given.evaluation, tokenizer, samples=given.windows, length=given.length, seed=None)
    with tempfile.TemporaryDirectory() as scratch:
        reference = Reference.make(original, evaluation.tokens, Path(scratch) / "reference.npy", progress("original"))
        found = {row: run(row, original, calibration.tokens, reference, Path(scratch) / "step") for row in ROWS}
    text = "\n".join(render(found, given)) + "\n"
    write_whole(given.results, text)
    print(text)


def run(
    row: str, original: Checkpoint, tokens: torch.Tensor, reference: Reference, out: Path
) -> tuple[np.ndarray, float]:
    """Means of each window, as `summarize` takes them, and bits of a weight of the linears."""
    spec, _, _ = row.partition(" ")
    with tensor_scales_of_any_value() if row.endswith(NOT_POWERS) else unchanged():
        context = PassContext(out, {}, tokens, 0, lambda what, done, total: None, [])
        step = make_pass(*parse_spec(spec)).apply(original, context)
    windows = checkpoint_scores(step, reference, progress(row)).windows()
    bits = linear_bits(step)
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return windows, bits


@contextmanager
def tensor_scales_of_any_value() -> Iterator[None]:
    """The pass takes the scale at which the largest value of a tensor is the largest that can be stored."""
    kept = passes.nvfp4.tensor_scale_of
    passes.nvfp4.tensor_scale_of = lambda largest: largest / (LARGEST * LARGEST_SCALE)
    try:
        yield
    finally:
        passes.nvfp4.tensor_scale_of = kept


@contextmanager
def unchanged() -> Iterator[None]:
    yield


def progress(what: str) -> Report:
    def report(done: int, total: int) -> None:
        print(f"\r{what}: {done} of {total} ", end="\n" if done == total else "", file=sys.stderr)

    return report


def render(found: dict[str, tuple[np.ndarray, float]], given: argparse.Namespace) -> Iterator[str]:
    first = found[FIRST][0]
    yield from ("# NVFP4: the search of block scales, and tensor scales that are powers of two", "")
    yield f"Printed by `benchmarks/nvfp4.py` on {environment()['cpu']}, model {given.model.name}: calibrated on"
    yield f"{given.samples} x {given.length} tokens (for input scales only), judged on {given.windows} x {given.length}"
    yield "tokens. KL is from the original, in nats a token; the last column is its difference from the first row in"
    yield "the same windows. ± is one standard error."
    yield from (
        "",
        "| pass | bits a weight | perplexity | KL | top-1 | KL, difference |",
        "|---|---:|---:|---:|---:|---:|",
    )
    for row, (windows, bits) in found.items():
        quality, paired = summarize(windows), mean(windows[:, 2] - first[:, 2])
        spec, _, how = row.partition(" ")
        top1 = f"{100 * quality.top1.value:.2f} ± {100 * quality.top1.stderr:.2f}%"
        kl = f"{quality.kl.value:.4f} ± {quality.kl.stderr:.4f}"
        difference = f"{paired.value:+.4f} ± {paired.stderr:.4f}" if row != FIRST else ""
        perplexity = f"{quality.perplexity.value:.2f} ± {quality.perplexity.stderr:.2f}"
        yield f"| `{spec}` {how} | {bits:.2f} | {perplexity} | {kl} | {top1} | {difference} |"


if __name__ == "__main__":
    main()
