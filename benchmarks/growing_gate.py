"""How often `llmc gate --more-samples` is wrong, and how often it finds what is there, by simulation.

    python benchmarks/growing_gate.py [--trials 300]

Prints as Markdown the share of trials that end with a wrong verdict where every change is exactly as large as its limit
or within it, and with the right one where it is smaller or larger, with the 95% interval of Clopper and Pearson.
`tests/compressor/gate/test_growing.py` asserts of the same simulation that the gate keeps its promises.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np

from compressor.gate.decide import Decision, Verdict, decide
from compressor.gate.evidence import Evidence
from compressor.gate.growing import GROWTH, spent
from compressor.gate.limits import ALPHA
from compressor.gate.statistics import ClusteredChange, MeanChange
from compressor.report.markdown import grid
from compressor.report.tables import Table

LOOKS = [20 * GROWTH**look for look in range(5)]  # documents at each look
SPENT = [spent(ALPHA, look) for look in range(1, len(LOOKS) + 1)]
TEXT_LIMIT, TIME_LIMIT = 0.02, 0.05
REPEATS = 10  # of times, which do not grow


def of_documents(trials: int, seed: int, worse: float, levels: Sequence[float] = SPENT) -> Counter[Verdict]:
    """How trials end that look at documents which grow, at these alphas; the first verdict ends a trial.

    Each document has a change of its own, skewed as losses are, around `worse`, and tokens around that.
    """
    draw = np.random.default_rng(seed)
    sizes = draw.poisson(60, (LOOKS[-1], trials)) + 20.0
    own = worse + 0.03 * (draw.gamma(4.0, 0.5, sizes.shape) - 2.0)
    sums = sizes * own + draw.normal(0, 0.1, sizes.shape) * np.sqrt(sizes)
    passed, failed = np.zeros(trials, bool), np.zeros(trials, bool)
    for documents, alpha in zip(LOOKS, levels, strict=True):
        change = ClusteredChange.of(sums[:documents], sizes[:documents], resamples=999)
        undecided = ~(passed | failed)
        failed |= undecided & (change.p_beyond(TEXT_LIMIT) <= alpha)
        passed |= undecided & ~failed & (change.bounds(alpha)[1] <= TEXT_LIMIT)
    known = {Verdict.PASS: int(passed.sum()), Verdict.FAIL: int(failed.sum())}
    return Counter(known | {Verdict.INCONCLUSIVE: trials - sum(known.values())})


def of_documents_and_times(trials: int, seed: int, worse: float, slower: float) -> Counter[Verdict]:
    """How trials end that go through all of the decision: a text that grows, and repeats that were timed once."""
    draw = np.random.default_rng(seed)
    return Counter(
        _trial(draw.normal(worse, 0.05, LOOKS[-1]), draw.normal(slower, 0.03, REPEATS)) for _ in range(trials)
    )


def _trial(documents: np.ndarray, times: np.ndarray) -> Verdict:
    standing = _evidence(times, TIME_LIMIT, "repeat, in turns")
    for count, alpha in zip(LOOKS, SPENT, strict=True):
        findings = decide([_evidence(documents[:count], TEXT_LIMIT, "document"), standing], alpha, ALPHA)
        found = Decision("", "", "", alpha, findings).verdict
        if found is not Verdict.INCONCLUSIVE:
            break
    return found


def _evidence(values: np.ndarray, limit: float, unit: str) -> Evidence:
    """Changes of documents, or log ratios of times, as a gate has them."""
    change = MeanChange(values.mean(), values.std(ddof=1) / np.sqrt(len(values)), len(values) - 1)
    return Evidence(unit, unit, "nats", None, 0.0, change, limit, len(values), len(values), unit)


CASES = (  # what is simulated, changes of text and times, and the verdict that is counted
    ("text", 0.02, None, Verdict.PASS, "wrong"),
    ("text", 0.02, None, Verdict.FAIL, "wrong"),
    ("text", 0.0, None, Verdict.FAIL, "wrong"),
    ("text", 0.012, None, Verdict.PASS, "right"),
    ("text", 0.028, None, Verdict.FAIL, "right"),
    ("text and times", 0.0, 0.05, Verdict.PASS, "wrong"),
    ("text and times", 0.02, 0.0, Verdict.PASS, "wrong"),
    ("text and times", 0.02, 0.05, Verdict.PASS, "wrong"),
    ("text and times", 0.02, 0.05, Verdict.FAIL, "wrong"),
    ("text and times", 0.0, 0.0, Verdict.PASS, "right"),
    ("text and times", 0.0, 0.12, Verdict.FAIL, "right"),
    ("text and times", 0.04, 0.0, Verdict.FAIL, "right"),
)
HEADERS = ("judged", "change of the text", "change of times", "verdict", "it is", "share", "95% interval")


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    trials = parser.parse_args().trials
    known: dict[tuple[float, float | None], Counter[Verdict]] = {}
    rows: list[tuple[str, ...]] = []
    for number, (judged, worse, slower, verdict, kind) in enumerate(CASES):
        if (worse, slower) not in known:
            known[worse, slower] = (
                of_documents(trials, number, worse)
                if slower is None
                else of_documents_and_times(trials, number, worse, slower)
            )
        share, interval = _share(known[worse, slower][verdict], trials)
        rows.append(
            (judged, f"{worse:g}", "" if slower is None else f"{slower:g}", str(verdict), kind, share, interval)
        )
    print(
        "# The gate on growing samples, simulated\n\nPrinted by `benchmarks/growing_gate.py`: trials of at most",
        end=" ",
    )
    print(
        f"{len(LOOKS)} looks, from {LOOKS[0]} to {LOOKS[-1]} documents,\nat alpha {ALPHA:g} in all. The text may",
        end=" ",
    )
    print(f"change by {TEXT_LIMIT:g}, {REPEATS} repeats of times by {TIME_LIMIT:g}. {trials} trials each.\n")
    print(grid(Table("", HEADERS, rows)))


def _share(count: int, trials: int) -> tuple[str, str]:
    from scipy import stats

    interval = stats.binomtest(count, trials).proportion_ci()
    return f"{count / trials:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"


if __name__ == "__main__":
    main()
