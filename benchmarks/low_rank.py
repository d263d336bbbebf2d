"""What do factors of low rank give, in the place of linears and beside rounded ones?

    python benchmarks/low_rank.py --model examples/demo/model --calibration calibration.txt --evaluation test.txt \\
        [--rows low-rank "plain SVD" ...] [--results FILE]

All rows are recipes of ours, run one after the other in this process on the same tokens; a recipe that begins as
another goes on from there. Rows of int4 are lowered for ONNX Runtime too, and their tokens timed in turns. What each
row gave is kept in OUT; the table is printed and written to benchmarks/results/low_rank.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import linear_bits
from peer import BENCHMARKS

from calibration.dataset import TokenSet, load_tokens
from compressor.checkpoint import Checkpoint
from compressor.environment import environment
from compressor.errors import InputError
from compressor.files import write_json, write_whole
from compressor.measure.accuracy import Reference, checkpoint_scores, summarize
from compressor.measure.statistics import mean
from compressor.pass_ import PassContext
from compressor.registry import make_pass, parse_spec
from compressor.report.markdown import grid
from compressor.report.tables import MISSING, Table, estimate
from compressor.target import Artifact, Session
from compressor.tokenizer import load_tokenizer

# Name: recipe, and the row that it is compared with.
ROWS: Mapping[str, tuple[tuple[str, ...], str | None]] = {
    "plain SVD": (("low-rank:whitening=false,allocation=uniform",), None),
    "as SVD-LLM": (("low-rank:allocation=uniform,propagation=false",), "plain SVD"),
    "uniform ranks": (("low-rank:allocation=uniform",), "as SVD-LLM"),
    "low-rank": (("low-rank",), "uniform ranks"),
    "rtn": (("rtn:group_size=64",), None),
    **{f"rtn + r{rank}": (("rtn:group_size=64", f"low-rank-correction:rank={rank}"), "rtn") for rank in (8, 16, 32)},
    "gptq": (("gptq:group_size=64",), None),
    **{f"gptq + r{rank}": (("gptq:group_size=64", f"low-rank-correction:rank={rank}"), "gptq") for rank in (8, 16, 32)},
    "gptq g32": (("gptq:group_size=32",), "gptq"),
}
TIMED = ("rtn", "rtn + r8", "rtn + r16", "rtn + r32")
PROMPT, TOKENS, ROUNDS = 64, 24, 9
HEADERS = ("row", "CPU s", "bits", "MB", "perplexity", "KL", "top-1", "against", "KL −")
READING = """\
CPU seconds are those of the last pass. Bits are those of a weight of the decoder's linears, scales and factors
included; MB is the size of the step, embedding and all. KL is KL(original ‖ row) in nats a token. Figures after ± are
standard errors over windows; in the last column, of the paired difference from the row that is named. The first rows
keep 80% of the parameters of the linears, in 16 bits; the others are int4 in groups of 64, "+ r16" with factors of
rank 16 beside, or in groups of 32."""
SPEED_READING = f"""\
One token behind a prompt of {PROMPT}, accuracy level 4, one thread: CPU time, medians of {ROUNDS} rounds of
{TOKENS} tokens in turns, and the mean ratio of a round to that of rtn with its standard error."""


def main(words: Sequence[str] | None = None) -> int:
    given = _parse(words)
    tokenizer = load_tokenizer(given.model)
    read = {"tokenizer": tokenizer, "samples": given.samples, "length": given.length, "seed": 0}
    calibration = load_tokens(given.calibration, **read)
    evaluation = load_tokens(given.evaluation, **{**read, "samples": given.windows, "seed": None})
    original = Checkpoint.open(given.model)
    given.out.mkdir(parents=True, exist_ok=True)
    reference = Reference.make(original, evaluation.tokens, given.out / "original.npy", _quiet)
    for name in given.rows or ROWS:
        try:
            found = _row(name, original, calibration, reference, given.out)
        except InputError as error:  # a rank that saves nothing in so small a model
            print(f"{name}: {error}", file=sys.stderr)
            continue
        write_json(given.out / f"{_slug(name)}.json", found)
    known = {
        name: json.loads(path.read_text()) for name in ROWS if (path := given.out / f"{_slug(name)}.json").exists()
    }
    speed = _speed(given.out, [name for name in TIMED if name in known])
    write_whole(given.results, _document(given, calibration, evaluation, known, speed))
    print(given.results.read_text())
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    asking.add_argument("--calibration", required=True, help="text, as `llmc compress` takes it")
    asking.add_argument("--evaluation", required=True, help="held-out text")
    asking.add_argument("--rows", nargs="+", choices=ROWS, help="rows to run; those of earlier runs stay")
    asking.add_argument("--samples", type=int, default=64, help="calibration windows")
    asking.add_argument("--windows", type=int, default=24, help="evaluation windows")
    asking.add_argument("--length", type=int, default=256, help="tokens of a window")
    asking.add_argument("--out", type=Path, default=Path("out/low_rank"))
    asking.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "low_rank.md")
    asking.add_argument("--remark", default="", help="a sentence for the results, such as what else the machine did")
    return asking.parse_args(words)


def _row(name: str, original: Checkpoint, calibration: TokenSet, reference: Reference, out: Path) -> dict[str, Any]:
    """Run a recipe and judge what it leaves; the steps stay in `out`."""
    start, checkpoint, unrounded = time.process_time(), original, original
    specs = ROWS[name][0]
    for count in range(1, len(specs) + 1):
        folder = out / _slug("+".join(specs[:count]))
        if count == len(specs):
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            one = make_pass(*parse_spec(specs[count - 1]))
            one.plan(checkpoint.architecture, checkpoint.schemes)
            context = PassContext(folder, {}, calibration.tokens, 0, _quiet, [], original, [], unrounded)
            one.apply(checkpoint, context)
        checkpoint = Checkpoint.open(folder)
    spent = time.process_time() - start
    windows = checkpoint_scores(checkpoint, reference, _quiet).windows()
    return {
        "cpu_s": round(spent, 1),
        "bits": linear_bits(checkpoint),
        "bytes": checkpoint.nbytes,
        "windows": windows.tolist(),
        "folder": checkpoint.root.name,
    }


def _document(
    given: argparse.Namespace,
    calibration: TokenSet,
    evaluation: TokenSet,
    known: Mapping[str, dict[str, Any]],
    speed: list[tuple[str, ...]],
) -> str:
    texts = "; ".join(
        f"{what}: {' × '.join(map(str, text.tokens.shape))} tokens of {Path(text.source).name}"
        for what, text in (("calibration", calibration), ("evaluation", evaluation))
    )
    parts = [
        "# Factors of low rank",
        "Printed by `benchmarks/low_rank.py`. Nothing was trained.",
        f"Model: {given.model.resolve().name}. {texts}. {environment()['cpu']}, one thread.",
        grid(Table("", HEADERS, [_cells(name, known) for name in known])),
        READING,
        "## Speed in ONNX Runtime",
        grid(Table("", ("row", "CPU ms a token", "ratio to rtn"), speed)),
        SPEED_READING,
        *([given.remark] if given.remark else []),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(name: str, known: Mapping[str, dict[str, Any]]) -> tuple[str, ...]:
    found, rival = known[name], ROWS[name][1]
    windows = np.array(found["windows"])
    quality = summarize(windows)
    paired = MISSING
    if rival in known:
        paired = estimate(mean(windows[:, 2] - np.array(known[rival]["windows"])[:, 2]))
    return (
        name,
        f"{found['cpu_s']:.1f}",
        f"{found['bits']:.2f}",
        f"{found['bytes'] / 1e6:.2f}",
        estimate(quality.perplexity, least=2),
        estimate(quality.kl),
        estimate(quality.top1, percent=True),
        rival or MISSING,
        paired,
    )


def _speed(out: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Times of a token in turns, each row by its name."""
    from targets.onnx.target import OnnxInt4

    target, sessions = OnnxInt4(), {}
    for name in names:
        folder = out / "onnx" / _slug(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        target.lower(Checkpoint.open(out / _slug("+".join(ROWS[name][0]))), folder, _quiet)
        sessions[name] = target.open(Artifact(folder, target.name), threads=1)
    times = np.array([[_token_ms(session) for session in sessions.values()] for _ in range(ROUNDS)])
    rows = []
    for place, name in enumerate(sessions):
        ratios = times[:, place] / times[:, 0]
        spread = ratios.std(ddof=1) / ROUNDS**0.5
        rows.append((name, f"{np.median(times[:, place]):.2f}", f"{ratios.mean():.2f} ± {spread:.2f}"))
    return rows


def _token_ms(session: Session) -> float:
    token = session.prefill(np.zeros((1, PROMPT), dtype=np.int64))
    before = time.process_time()
    for _ in range(TOKENS):
        token = session.decode(token)
    return (time.process_time() - before) / TOKENS * 1e3


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _quiet(*_: object) -> None:
    """Progress that nobody looks at."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
