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


# ---- other scripts

ENGLISH = (
    ("The cat's naïve owner didn't see 3.5 running dogs at the café!", "A cats owner did not see the 3.5 dogs run."),
    ("state-of-the-art models, trained quickly", "State of the art model trains quick"),
    ("", "nothing was said"),
)
ANY_SCRIPT = {
    "小明买了一个苹果，送给了小红。": "zh",
    "今日はとてもいい天気ですね": "char",
    "สวัสดีครับ วันนี้อากาศดี": "char",
    "Привет, прекрасный мир": "13a",
    "مرحبا بالعالم الجميل": "13a",
    "안녕하세요 아름다운 세계": "13a",
    "नमस्ते सुंदर दुनिया": "13a",
    "我用 PyTorch 2 训练 models": "zh",
}


@pytest.mark.parametrize(("said", "known"), ENGLISH)
def test_english_is_scored_as_by_the_libraries(said, known):
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer
    from transformers.data.metrics import squad_metrics

    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(known, said)
    found = metrics.rouge([said], [[known]])
    assert {name: found[name][0] for name in expected} == {name: one.fmeasure for name, one in expected.items()}
    assert metrics.sentence_bleu([said], [[known]])[0] == sacrebleu.sentence_bleu(said, [known]).score / 100
    assert metrics.token_f1(said, [known]) == squad_metrics.compute_f1(known, said)
    assert metrics.tokenizers("generation", [[known]]) == {"rouge": "rouge_score", "bleu": "13a"}
    assert metrics.tokenizers("question-answering", [[known]]) == {"f1": "SQuAD"}


@pytest.mark.parametrize(("text", "cut"), ANY_SCRIPT.items())
def test_the_right_answer_is_right_in_any_script(text, cut):
    assert metrics.tokenizers("generation", [[text]])["bleu"] == cut
    assert {float(values[0]) for values in metrics.rouge([text], [[text]]).values()} == {1.0}
    assert metrics.sentence_bleu([text], [[text]])[0] == pytest.approx(1)
    assert (metrics.exact_match(text, [text]), metrics.token_f1(text, [text])) == (1, 1)
    wrong = "Zzz"
    assert {float(values[0]) for values in metrics.rouge([wrong], [[text]]).values()} == {0.0}
    assert (metrics.exact_match(wrong, [text]), metrics.token_f1(wrong, [text])) == (0, 0)


def test_of_chinese_the_characters_are_counted():
    import sacrebleu

    said, known = "小明买了一个苹果，送给了小李。", "小明买了一个苹果，送给了小红。"
    # 12 of 13 characters, 11 of 12 pairs; punctuation is left out.
    found = metrics.rouge([said], [[known]])
    assert [float(found[name][0]) for name in metrics.ROUGES] == pytest.approx([12 / 13, 11 / 12, 12 / 13])
    assert metrics.token_f1(said, [known]) == pytest.approx(12 / 13)
    assert metrics.exact_match(said, [known]) == 0
    assert metrics.exact_match("小明买了一个苹果,送给了小红", [known]) == 1
    expected = sacrebleu.sentence_bleu(said, [known], tokenize="zh").score / 100
    assert metrics.sentence_bleu([said], [[known]])[0] == pytest.approx(expected)
    corpus = sacrebleu.corpus_bleu([said, known], [[known, known]], tokenize="zh").score / 100
    assert metrics.corpus_bleu([said, known], [[known], [known]]).value == pytest.approx(corpus)


def test_english_words_among_others_are_stemmed_and_full_width_is_half_width():
    assert metrics.rouge(["训练 models"], [["训练 model"]])["rouge1"][0] == 1
    assert metrics.exact_match("在１２３号", ["在123号"]) == 1


def test_marks_go_with_the_letters_that_they_are_written_on():
    from compressor.tasks.scripts import words

    assert words("ดีค่ะ 5บาท") == ["ดี", "ค่", "ะ", "5", "บ", "า", "ท"]
    assert words("नमस्ते, दुनिया!") == ["नमस्ते", "दुनिया"]


def test_what_cut_the_answers_is_named():
    answers = [["苹果"], ["apple"]]
    found = metrics.tokenizers("generation", answers)
    assert found == {
        "rouge": "rouge_score; words, or characters where a script has no spaces, in 1 of 2 samples", "bleu": "zh",
    }  # fmt: skip
    few = [["The word 好 is among many other words of English here"]]
    assert metrics.tokenizers("generation", few)["bleu"] == "13a"
