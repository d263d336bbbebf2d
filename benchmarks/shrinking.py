"""What do smaller and sparser models cost, and do we prune as well as llm-compressor?

    python benchmarks/shrinking.py --model smollm2 --calibration valid.txt --evaluation test.txt [--samples 64] \\
        [--rows sparsegpt "llm-compressor sparsegpt" ...] [--again]

A row is a recipe, run in a process of its own on the same folder and the same tokens; the folder it leaves is judged by
our code. Finished rows are kept in OUT and not run again; everything there is in the table, which is printed and
written to benchmarks/results/shrinking.md. Exit code 1 when a bar that was measured fails, or a row breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from request import chosen, finish, is_whole, parser, run, start
from rows import Row
from shrinking_report import document
from tools import LLM_COMPRESSOR, LLMC

# Every linear of the decoder; embedding and lm_head are kept.
LINEARS = {"targets": ["Linear"], "ignore": ["re:.*lm_head"]}
HALF, TWO_OF_FOUR, SMALLER = "50% zeros", "2:4", "smaller"


def ours(name: str, kind: str, *passes: str) -> Row:
    return Row(name, kind, "llmc", LLMC, {"passes": list(passes)})


def llm_compressor(name: str, kind: str, modifier: str, **options: Any) -> Row:
    recipe = {modifier: {"sparsity": 0.5, **options, **LINEARS}}
    return Row(f"llm-compressor {name}", kind, "llm-compressor", LLM_COMPRESSOR, {"recipe": recipe, "calibrates": True})


ROWS = (
    ours("magnitude", HALF, "magnitude"),
    ours("wanda", HALF, "wanda"),
    ours("sparsegpt", HALF, "sparsegpt"),
    ours("sparsegpt as published", HALF, "sparsegpt:iterations=0,propagation=false"),
    llm_compressor("wanda", HALF, "WandaPruningModifier"),
    llm_compressor("sparsegpt", HALF, "SparseGPTModifier"),
    ours("wanda 2:4", TWO_OF_FOUR, "wanda:pattern=2:4"),
    ours("sparsegpt 2:4", TWO_OF_FOUR, "sparsegpt:pattern=2:4"),
    llm_compressor("wanda 2:4", TWO_OF_FOUR, "WandaPruningModifier", mask_structure="2:4"),
    llm_compressor("sparsegpt 2:4", TWO_OF_FOUR, "SparseGPTModifier", mask_structure="2:4"),
    ours("prune-depth", SMALLER, "prune-depth:fraction=0.2"),
    ours("prune-width", SMALLER, "prune-width:fraction=0.2,multiple=64"),
    ours("prune-width mlp", SMALLER, "prune-width:fraction=0.2,multiple=64,parts=mlp"),
    ours("sparsegpt+gptq", "50% zeros, int4 g64", "sparsegpt:dtype=float32", "gptq:group_size=64"),
)
# The row that a row is compared with, window by window.
RIVALS = {
    **{name: f"llm-compressor {name}" for name in ("wanda", "sparsegpt", "wanda 2:4", "sparsegpt 2:4")},
    "sparsegpt as published": "llm-compressor sparsegpt",
    "prune-width": "prune-depth",
    "prune-width mlp": "prune-depth",
}
BARS = ("wanda", "sparsegpt", "wanda 2:4", "sparsegpt 2:4")  # not worse than their rivals


def main(words: Sequence[str] | None = None) -> int:
    asking = parser(__doc__, "shrinking")
    arguments = asking.parse_args(words)
    if not is_whole(arguments):
        asking.error("--model, --calibration and --evaluation are needed")

    def compare() -> tuple[str, bool]:
        wanted = chosen(ROWS, arguments.rows)
        problems = run(arguments, list(ROWS) if wanted is None else wanted, ROWS)
        return document(arguments.out, ROWS, problems, RIVALS, BARS)

    return finish(arguments, compare)


if __name__ == "__main__":
    start(main)
