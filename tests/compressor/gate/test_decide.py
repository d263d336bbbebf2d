"""What cannot pass: tasks that could not show a loss."""

import numpy as np
import pytest

from compressor.gate.decide import Verdict, decide
from compressor.gate.evidence import _of_scores, _of_task
from compressor.gate.tasks import ScorePairs

RISING = np.linspace(0.2, 0.9, 40)
NOTHING = "the original scores 0 on every sample"
ALIKE = "all samples have the same score"


def verdict(before, after, metric):
    pairs = ScorePairs("task", metric, np.asarray(before, float), np.asarray(after, float))
    counts = pairs.as_counts()
    evidence = _of_scores(pairs, 0.02) if counts is None else _of_task(counts, 0.02)
    (found,) = decide([evidence], 0.05)
    return found


@pytest.mark.parametrize(
    ("before", "after", "metric", "reason"),
    [
        (np.zeros(40), np.zeros(40), "rougeL", NOTHING),
        (np.zeros(40), RISING, "rougeL", NOTHING),
        (np.full(40, 0.5), np.full(40, 0.5), "rougeL", ALIKE),
        (np.zeros(400), np.zeros(400), "accuracy", NOTHING),
        (np.ones(400), np.ones(400), "accuracy", ALIKE),
    ],
)
def test_a_task_that_could_not_show_a_loss_is_inconclusive(before, after, metric, reason):
    found = verdict(before, after, metric)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason.startswith(reason)
    assert found.more is None


def test_a_loss_that_is_seen_fails_all_the_same():
    assert verdict(np.ones(40), np.zeros(40), "accuracy").verdict is Verdict.FAIL
    assert verdict(np.ones(40), 1 - RISING, "f1").verdict is Verdict.FAIL


def test_scores_that_vary_and_did_not_change_pass():
    assert verdict(RISING, RISING, "rougeL").verdict is Verdict.PASS
    right = np.arange(400) % 2
    assert verdict(right, right, "accuracy").verdict is Verdict.PASS
