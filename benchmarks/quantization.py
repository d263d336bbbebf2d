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
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judging import Judge
from peer import BENCHMARKS, Peer
from quantization_report import EVALUATION, Evaluation, document
from rows import Bench, Row
from shapes import llama, random_model, random_tokens

from calibration.dataset import TokenSet, load_tokens
from compressor.errors import InputError, LlmcError
from compressor.files import write_json, write_whole
from compressor.ledger import TextRecord
from compressor.tokenizer import load_tokenizer

LLMC = Peer(sys.prefix, "llmc_peer.py", ())
# torch first and pinned, so that nothing pulls a CUDA build. compressed-tensors is what auto-round exports with.
PINS = ["torch==2.13.0", "transformers==5.17.0", "compressed-tensors==0.19.0"]
LLM_COMPRESSOR = Peer(
    ".venv-llmcompressor", "llmcompressor_peer.py", (["torch==2.13.0"], ["llmcompressor==0.14.0.1", *PINS])
)
AUTO_ROUND = Peer(".venv-autoround", "autoround_peer.py", (["torch==2.13.0"], ["auto-round==0.16.1", *PINS]))

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
    try:
        rows = _chosen(arguments.rows)
        problems = _run(arguments, rows)
    except LlmcError as error:
        print(f"{error} {error.hint or ''}".strip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; finished rows are kept.", file=sys.stderr)
        return 4
    text, failed = document(arguments.out, ROWS, problems, INT4)
    write_whole(arguments.results, text)
    print(text)
    return int(failed)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder")
    parser.add_argument("--calibration", help="text, as `llmc compress` takes it")
    parser.add_argument("--evaluation", help="held-out text")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="names of rows; the others stay as they are")
    parser.add_argument("--samples", type=int, help="calibration windows, 128; 16 for --shape and --depth")
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration window")
    parser.add_argument("--windows", type=int, default=24, help="evaluation windows")
    parser.add_argument("--window-length", type=int, default=512, help="tokens of an evaluation window")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every row")
    parser.add_argument("--again", action="store_true", help="run the rows although they are finished")
    parser.add_argument("--rounds", type=int, default=0, help="run the rows so many times, in turns")
    parser.add_argument("--shape", choices=SHAPES, help="memory and time on a random model of this shape")
    parser.add_argument("--depth", type=int, help="ours on random models of this depth and four times that")
    parser.add_argument("--width", type=int, default=1024, help="of --depth")
    parser.add_argument("--out", type=Path, default=Path("out/quantization"))
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "quantization.md")
    given = parser.parse_args(words)
    if not (given.shape or given.depth) and not (given.model and given.calibration and given.evaluation):
        parser.error("--model, --calibration and --evaluation are needed, or --shape, or --depth")
    return given


def _chosen(names: list[str] | None) -> list[Row] | None:
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"There is no row {unknown[0]!r}.", "Rows: " + ", ".join(known) + ".")
    return None if names is None else [known[name] for name in names]


def _run(arguments: argparse.Namespace, chosen: list[Row] | None) -> dict[str, LlmcError]:
    """Run what is asked for; why rows were not run, by name."""
    few = [row for row in ROWS if row.name in MEMORY_ROWS]
    if arguments.shape:
        return _run_random(arguments, f"shape-{arguments.shape}", SHAPES[arguments.shape], chosen or few)
    if arguments.depth:
        problems: dict[str, LlmcError] = {}
        for layers in (arguments.depth, 4 * arguments.depth):
            folder = f"depth/{layers}-wide-{arguments.width}"
            problems |= _run_random(arguments, folder, llama(layers, arguments.width), chosen or few[:1])
        return problems
    return _run_real(arguments, list(ROWS) if chosen is None else chosen)


def _run_random(
    arguments: argparse.Namespace, name: str, config: dict[str, Any], rows: list[Row]
) -> dict[str, LlmcError]:
    out = arguments.out / name
    tokens = random_tokens(arguments.samples or 16, arguments.length)
    bench = Bench.open(out, random_model(out / "model", config), tokens, arguments.threads)
    return bench.run_all(rows, arguments.again)


def _run_real(arguments: argparse.Namespace, rows: list[Row]) -> dict[str, LlmcError]:
    tokenizer = load_tokenizer(arguments.model)
    calibration = load_tokens(
        arguments.calibration, tokenizer, samples=arguments.samples or 128, length=arguments.length, seed=0
    )
    evaluation = load_tokens(
        arguments.evaluation, tokenizer, samples=arguments.windows, length=arguments.window_length, seed=None
    )
    bench = Bench.open(arguments.out, arguments.model, calibration.tokens, arguments.threads)
    problems = bench.time_in_turns(rows, arguments.rounds) if arguments.rounds else bench.run_all(rows, arguments.again)
    judge = Judge.of(arguments.model, evaluation.tokens, arguments.out / "reference")
    for row in ROWS:
        judge.judge(bench, row)
    about = Evaluation(arguments.model.name, judge.key, _record(calibration), _record(evaluation))
    write_json(arguments.out / EVALUATION, asdict(about))
    return problems


def _record(text: TokenSet) -> TextRecord:
    windows, length = text.tokens.shape
    return TextRecord(Path(text.source).name, windows, length, text.digest)


if __name__ == "__main__":
    # So that a terminated benchmark ends its row's processes and leaves nothing of it, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated; finished rows are kept."))
    sys.exit(main())
