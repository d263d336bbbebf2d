"""How do our quantizers compare with llm-compressor, auto-round and round-to-nearest at equal bits?

    python benchmarks/quantization.py --model merged-lora --calibration valid.txt --evaluation test.txt \\
        [--rows gptq "llm-compressor gptq" ...] [--again] [--rounds 3]
    python benchmarks/quantization.py --shape 1b     # memory and time on random weights, streamed to disk
    python benchmarks/quantization.py --depth 4      # ours at depth 4 and 16

Every row is a process of its own on the same folder and the same tokens; the folder it leaves is judged by our code.
Finished rows are kept in OUT and not run again; everything there is in the table, which is printed and written to
benchmarks/results/quantization.md. Peers run in environments that are made the first time. Exit code 1 when a bar
that was measured fails, or a row breaks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from quantization_report import document
from request import chosen, finish, is_whole, parser, run, start
from rows import Bench, Row
from shapes import llama, random_model, random_tokens
from tools import AUTO_ROUND, LLM_COMPRESSOR, LLMC

from compressor.errors import LlmcError

# Every linear of the decoder, lm_head kept; integers are symmetric.
INT4, MIXED, NF4, INT8, W8A8, FP8 = "int4 g64", "mixed", "nf4", "int8", "W8A8", "fp8"
INT4_ARGUMENTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
INT4_GROUP = {
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4_ARGUMENTS}},
    "ignore": ["lm_head"],
}
STATIC_MSE = {"actorder": "static", "weight_observer": "mse"}
W8A8_SCHEME = {"scheme": "W8A8", "targets": ["Linear"], "ignore": ["lm_head"]}
# The smoothing strength of llm-compressor's own W8A8 example, which our row takes too.
SMOOTHING = 0.8
SMOOTHQUANT = f"smoothquant:alpha={SMOOTHING}"
SMOOTH = {"smoothing_strength": SMOOTHING}


def ours(name: str, kind: str, *passes: str, rivals: str | None = None) -> Row:
    return Row(name, kind, "llmc", LLMC, {"passes": list(passes)}, rivals)


def llm_compressor(name: str, kind: str, calibrates: bool = True, **modifiers: Any) -> Row:
    options = {"recipe": modifiers, "calibrates": calibrates}
    return Row(f"llm-compressor {name}", kind, "llm-compressor", LLM_COMPRESSOR, options)


def auto_round(name: str, **options: Any) -> Row:
    scheme = {"scheme": "W4A16", "group_size": 64}
    return Row(name, INT4, "auto-round", AUTO_ROUND, {**scheme, **options})


ROWS = (
    ours("rtn", INT4, "rtn:group_size=64"),
    ours("rtn-mse", INT4, "rtn:group_size=64,scale_search=true"),
    ours("gptq", INT4, "gptq:group_size=64"),
    ours("awq", INT4, "awq:group_size=64"),
    ours("awq+gptq", INT4, "awq:group_size=64,round=false", "gptq:group_size=64"),
    ours("rotate+gptq", INT4, "rotate", "gptq:group_size=64"),
    ours("tune", INT4, "tune:group_size=64"),
    ours("tune light", INT4, "tune:group_size=64,iterations=50"),
    ours("mixed 4.25", MIXED, "mixed:bits=4.25", rivals=INT4),
    ours("nf4", NF4, "nf4", rivals=INT4),
    ours("gptq-w8", INT8, "gptq:bits=8,group_size=channel"),
    ours("smoothquant+gptq-w8a8", W8A8, SMOOTHQUANT, "gptq:bits=8,group_size=channel,activations=dynamic"),
    ours("smoothquant+gptq-w8a8 static", W8A8, SMOOTHQUANT, "gptq:bits=8,group_size=channel,activations=static"),
    ours("fp8", FP8, "fp8"),
    llm_compressor("rtn", INT4, calibrates=False, QuantizationModifier=INT4_GROUP),
    llm_compressor("gptq", INT4, GPTQModifier=INT4_GROUP),
    llm_compressor("gptq static+mse", INT4, GPTQModifier={**INT4_GROUP, **STATIC_MSE}),
    llm_compressor("awq", INT4, AWQModifier={}, QuantizationModifier=INT4_GROUP),
    llm_compressor("smoothquant+gptq-w8a8", W8A8, SmoothQuantModifier=SMOOTH, GPTQModifier=W8A8_SCHEME),
    auto_round("auto-round"),
    auto_round("auto-round light", iters=50, lr=5e-3),  # its preset of that name
)
MEMORY_ROWS = ("gptq", "llm-compressor gptq")  # of --shape; --depth takes the first
SHAPES = {"1b": llama(layers=16, width=2048)}


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    return finish(
        arguments,
        lambda: document(arguments.out, ROWS, _run(arguments, chosen(ROWS, arguments.rows)), INT4),
    )


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    asking = parser(__doc__, "quantization")
    asking.add_argument("--shape", choices=SHAPES, help="memory and time on a random model of this shape; 16 windows")
    asking.add_argument("--depth", type=int, help="ours on random models of this depth and four times that; 16 windows")
    asking.add_argument("--width", type=int, default=1024, help="of --depth")
    given = asking.parse_args(words)
    if not (given.shape or given.depth or is_whole(given)):
        asking.error("--model, --calibration and --evaluation are needed, or --shape, or --depth")
    return given


def _run(arguments: argparse.Namespace, asked: list[Row] | None) -> dict[str, LlmcError]:
    """Run what is asked for; why rows were not run, by name."""
    few = [row for row in ROWS if row.name in MEMORY_ROWS]
    if arguments.shape:
        return _run_random(arguments, f"shape-{arguments.shape}", SHAPES[arguments.shape], asked or few)
    if arguments.depth:
        problems: dict[str, LlmcError] = {}
        for layers in (arguments.depth, 4 * arguments.depth):
            folder = f"depth/{layers}-wide-{arguments.width}"
            problems |= _run_random(arguments, folder, llama(layers, arguments.width), asked or few[:1])
        return problems
    return run(arguments, list(ROWS) if asked is None else asked, ROWS)


def _run_random(
    arguments: argparse.Namespace, name: str, config: dict[str, Any], rows: list[Row]
) -> dict[str, LlmcError]:
    out = arguments.out / name
    tokens = random_tokens(arguments.samples or 16, arguments.length)
    bench = Bench.open(out, random_model(out / "model", config), tokens, arguments.threads)
    return bench.run_all(rows, arguments.again)


if __name__ == "__main__":
    start(main)
