"""Scores next to what their libraries' own examples and other libraries give."""

import numpy as np
import pytest
from scipy import stats

from compressor.tasks import metrics


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The Eiffel-Tower!", ["eiffeltower"], 1, 1),
        ("Denver Broncos", ["the Denver Broncos", "Broncos"], 1, 1),
        ("in the year 1066", ["1066"], 0, 0.5),
        ("", ["Paris"], 0, 0),
        ("cat sat", ["dog", "the cat sat on a mat"], 0, 2 / 3),
    ],
)
def test_answers_are_normalized_as_squad_does(prediction, answers, exact, f1):
    assert metrics.exact_match(prediction, answers) == exact
    assert metrics.token_f1(prediction, answers) == pytest.approx(f1)


def test_rouge_of_several_references_is_that_of_the_nearest():
    found = metrics.rouge(["the cat sat", "nothing"], [["a dog ran", "the cat sat"], ["all"]])
    assert found["rougeL"] == pytest.approx([1.0, 0.0])
    # 2 of 3 words of each: precision = recall = 2/3
    assert metrics.rouge(["a b c"], [["a b d"]])["rouge1"] == pytest.approx([2 / 3])


def test_bleu_is_that_of_sacrebleu():
    import sacrebleu

    texts = ["the cat is on the mat", "there is a big dog here today"]
    known = [["the cat sat on the mat"], ["there is a dog here today", "a big dog is here today"]]
    expected = sacrebleu.corpus_bleu(texts, [[known[0][0], known[1][0]], [None, known[1][1]]]).score / 100
    found = metrics.corpus_bleu(texts, known)
    assert found.value == pytest.approx(expected)
    assert found.stderr > 0
    single = [sacrebleu.sentence_bleu(text, refs).score / 100 for text, refs in zip(texts, known, strict=True)]
    assert metrics.sentence_bleu(texts, known) == pytest.approx(single)


def test_the_area_of_two_classes_is_the_share_of_pairs_in_order():
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 60)
    likelihoods = draw.normal(size=(60, 2)) + np.stack([-truth, truth], axis=1)
    score = likelihoods[:, 1] - likelihoods[:, 0]
    pairs = stats.mannwhitneyu(score[truth == 1], score[truth == 0]).statistic
    found = metrics.area_under_curve(truth, likelihoods)
    assert found.value == pytest.approx(pairs / ((truth == 1).sum() * (truth == 0).sum()))
    # Hanley and McNeil (1982): the standard error of an area near 0.9 in 60 samples is about 0.04.
    assert 0.02 < found.stderr < 0.06


def test_there_is_no_area_where_a_class_is_absent():
    assert metrics.area_under_curve(np.zeros(5, int), np.random.default_rng(0).normal(size=(5, 2))) is None


def test_f1_is_the_mean_over_classes():
    truth, chosen = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert metrics.macro_f1(truth, chosen).value == pytest.approx((0.8 + 2 / 3) / 2)
