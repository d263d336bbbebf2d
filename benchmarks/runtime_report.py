"""The tables of runtime.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from runtime_rows import (
    BUILDER,
    BUILDER_HUGE,
    LLAMA_CPP,
    LLAMA_CPP_HUGE,
    MODELS,
    OURS,
    OURS_GROUPS,
    OURS_INT4_HEAD,
    OURS_PLAIN,
    ROWS,
    Row,
)

DECODE_BAR, PREFILL_BAR, LLAMA_BAR = 1.15, 1.5, 1.0
BUILDERS, LLAMA_CPPS = (BUILDER, BUILDER_HUGE), (LLAMA_CPP, LLAMA_CPP_HUGE)
# Ours, and whether the other has huge pages too.
COMPARED = {
    "as run.sh starts it": (OURS, False),
    "both without huge pages": (OURS_PLAIN, False),
    "both with": (OURS, True),
    "the first, with an int4 head": (OURS_INT4_HEAD, False),
    "groups of 64, with an int4 head": (OURS_GROUPS, False),
}
Times = Mapping[str, Any]  # see runtime.Times


def document(
    facts: Mapping[str, Any],
    times: Mapping[int, Times],
    quality: Mapping[str, Any],
    profiles: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> str:
    """The results as Markdown.

    Args:
        facts: the environment, a remark, and how many windows quality is over.
        times: by the number of threads.
        quality: by model.
        profiles: by model, see `runtime_profile.profile`.
        sizes: bytes of weights that a token reads, by model.
    """
    parts = ["# SmolLM2-135M-Instruct at batch 1", _preamble(facts, times)]
    parts += ["## Bars", "\n".join(_bars(times))]
    for threads, measured in times.items():
        parts += [f"## {_threads(threads)}", _bandwidth(measured), "\n".join(_table(measured, quality, sizes))]
    parts += ["## Models", "\n".join(_models(quality, sizes, facts["windows"]))]
    parts += ["## Where the time goes, one thread", "\n".join(_profile_table(profiles))]
    return "\n\n".join(parts) + "\n"


def _preamble(facts: Mapping[str, Any], times: Mapping[int, Times]) -> str:
    machine, first = facts["environment"], next(iter(times.values()))
    clock = "Wall time" if first["clock"] == "perf_counter" else "CPU time"
    rounds = len(next(iter(first["first"].values())))
    return (
        f"Printed by `benchmarks/runtime.py` on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB. onnxruntime {machine['packages']['onnxruntime']}, "
        f"onnxruntime-genai 0.18.0, llama-cpp-python 0.3.36. {first['prompt']} tokens of prompt, then {first['steps']} "
        f"tokens. {clock}, {rounds} rounds in which the rows take turns: medians, and the median and the range of the "
        f"ratios within a round to the first row. {facts['remark']}"
    ).strip()


def _bars(times: Mapping[int, Times]) -> Iterator[str]:
    yield f"| threads | bar | {' | '.join(COMPARED)} |"
    yield f"|---:|---|{'---:|' * len(COMPARED)}"
    bars = (
        ("token", BUILDERS, DECODE_BAR, f"a token at least {DECODE_BAR} × as fast as the builder's"),
        ("first", BUILDERS, PREFILL_BAR, f"a prompt at least {PREFILL_BAR} × as fast as the builder's"),
        ("token", LLAMA_CPPS, LLAMA_BAR, f"a token at least {LLAMA_BAR} × as fast as llama.cpp's Q4_0"),
    )
    for threads, measured in times.items():
        for kind, theirs, bar, claim in bars:
            cells = (_verdict(_ratios(measured, kind, theirs[huge], ours), bar) for ours, huge in COMPARED.values())
            yield f"| {threads} | {claim} | {' | '.join(cells)} |"
        peaks = measured["peak_bytes"]
        shares = [peaks[ours.name] / peaks[BUILDERS[huge].name] for ours, huge in COMPARED.values()]
        cells = (f"{share:.2f} × {'holds' if share <= 1 else 'MISSED'}" for share in shares)
        yield f"| {threads} | peak memory at most the builder's | {' | '.join(cells)} |"


def _verdict(ratios: np.ndarray, bar: float) -> str:
    return f"{_spread(ratios)} {'holds' if np.median(ratios) >= bar else 'MISSED'}"


def _ratios(measured: Times, kind: str, row: Row, base: Row) -> np.ndarray:
    """The row's time over the base's, round by round."""
    return np.array(measured[kind][row.name]) / np.array(measured[kind][base.name])


def _spread(ratios: np.ndarray) -> str:
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def _bandwidth(measured: Times) -> str:
    before, after = (value / 1e9 for value in measured["bandwidth"])
    return (
        f"Copies moved {before:.1f} GB/s before and {after:.1f} GB/s after the rounds (reads and writes counted). "
        "The share is what a token's weights would take at the faster of these, over what the token took."
    )


def _table(measured: Times, quality: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    columns = ("ms a token", "× ours", "ms of a prompt", "× ours", "share of bandwidth", "peak MiB", "KL")
    yield f"| model | engine | head | {' | '.join(columns)} |"
    yield f"|---|---|---|{'---:|' * len(columns)}"
    for row in ROWS:
        token, first = (1e3 * float(np.median(measured[kind][row.name])) for kind in ("token", "first"))
        share = sizes[row.model.name] / max(measured["bandwidth"]) / (token / 1e3)
        cells = (
            row.model.name,
            row.engine + (", huge pages" if row.huge_pages else ""),
            row.model.head,
            f"{token:.2f}",
            _spread(_ratios(measured, "token", row, OURS)),
            f"{first:.0f}",
            _spread(_ratios(measured, "first", row, OURS)),
            f"{share:.0%}",
            f"{measured['peak_bytes'][row.name] / 2**20:.0f}",
            f"{quality[row.model.name]['kl']['value']:.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def _models(quality: Mapping[str, Any], sizes: Mapping[str, int], windows: int) -> Iterator[str]:
    yield f"KL from the original and perplexity on {windows} × 512 held-out tokens, each in its own runtime."
    yield ""
    yield "| model | made by | options | MiB of weights a token | KL (nats) | perplexity | top-1 |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for name, model in MODELS.items():
        found = quality[name]
        cells = (
            name,
            {"genai": "onnxruntime-genai's builder", "llama.cpp": "llama.cpp's quantizer"}.get(
                model.maker, model.maker
            ),
            " ".join(f"`{option}`" for option in model.options) or "defaults",
            f"{sizes[name] / 2**20:.1f}",
            f"{found['kl']['value']:.4f} ± {found['kl']['stderr']:.4f}",
            f"{found['perplexity']['value']:.2f}",
            f"{found['top1']['value']:.1%}",
        )
        yield f"| {' | '.join(cells)} |"


def _profile_table(profiles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    names = list(profiles)
    heads = [f"{name}, {what}" for what in ("token", "prompt") for name in names]
    columns: Sequence[Mapping[str, float]] = [profiles[name][what] for what in ("token", "prompt") for name in names]
    kinds = sorted({kind for column in columns for kind in column}, key=lambda kind: -columns[0].get(kind, 0))
    yield "Milliseconds in the nodes of each kind, the fastest run of each node (onnxruntime's profiler)."
    yield ""
    yield f"| operator | {' | '.join(heads)} |"
    yield f"|---|{'---:|' * len(heads)}"
    for kind in kinds:
        if max(column.get(kind, 0) for column in columns) >= 0.05:
            yield f"| {kind} | {' | '.join(f'{column.get(kind, 0):.2f}' for column in columns)} |"
    yield f"| all | {' | '.join(f'{sum(column.values()):.2f}' for column in columns)} |"


def _threads(threads: int) -> str:
    return "One thread" if threads == 1 else f"{threads} threads"
