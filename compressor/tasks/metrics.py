"""How right answers are. Scores of single samples where a metric is a mean of them, which is what a gate can test.

SQuAD's normalization is that of transformers, ROUGE that of rouge-score, BLEU that of sacrebleu, F1 of classes and the
area under the ROC curve are those of scikit-learn. Where an answer is not in Latin script, `scripts.words` are counted
in the place of the words that these find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compressor.errors import MissingExtra
from compressor.measure.statistics import Estimate, mean
from compressor.tasks.scripts import bleu_tokenizer, is_latin, words

RESAMPLES = 400  # of samples, for the error of a metric that is no mean of theirs
ROUGES = ("rouge1", "rouge2", "rougeL")
NORMAL_95 = 1.96
TOKENIZERS = {"f1": "SQuAD", "rouge": "rouge_score", "bleu": "13a"}  # of answers in Latin script


def check_installed(kind: str) -> None:
    """See that what computes the metrics of a kind of task is here.

    Raises:
        MissingExtra: it is not.
    """
    if kind == "classification":
        _scikit_learn("f1_score")
    elif kind == "generation":
        rouge([], [])
        _bleu()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where it equals an answer after SQuAD's normalization (Rajpurkar et al. 2016), else 0."""
    from transformers.data.metrics.squad_metrics import compute_exact

    if is_latin(answers):
        return float(max(compute_exact(answer, prediction) for answer in answers))
    return float(any(words(answer) == words(prediction) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that it shares with the nearest answer, after SQuAD's normalization."""
    from transformers.data.metrics.squad_metrics import compute_f1

    if not is_latin(answers):
        prediction, answers = (" ".join(words(prediction)), [" ".join(words(one)) for one in answers])
    return float(max(compute_f1(answer, prediction) for answer in answers))


def rouge(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """F-measures of ROUGE-1, -2 and -L with stemming, [samples] each; the nearest of several references counts."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtra("rouge-score", "tasks", "ROUGE") from error
    latin, others = RougeScorer(list(ROUGES), use_stemmer=True), RougeScorer(list(ROUGES), tokenizer=_AnyScript())
    found = [
        (latin if is_latin(known) else others).score_multi(list(known), text)
        for text, known in zip(predictions, answers, strict=True)
    ]
    return {name: np.array([one[name].fmeasure for one in found]) for name in ROUGES}


class _AnyScript:
    """What ROUGE counts of a text that is not all in Latin script. Its English words are stemmed as everywhere."""

    def tokenize(self, text: str) -> list[str]:
        from rouge_score.tokenizers import DefaultTokenizer

        english = DefaultTokenizer(use_stemmer=True)
        return [part for word in words(text) for part in (english.tokenize(word) if word.isascii() else [word])]


def sentence_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """BLEU of each sample, 0 to 1, with the orders that it is long enough for (sacrebleu's `sentence_bleu`)."""
    scorer = _bleu(effective_order=True, tokenize=_cut_for_bleu(answers))
    found = [scorer.sentence_score(text, list(known)) for text, known in zip(predictions, answers, strict=True)]
    return np.array([one.score / 100 for one in found])


def corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Estimate:
    """BLEU of all samples together, 0 to 1, its error from sacrebleu's own bootstrap."""
    most = max(map(len, answers))
    columns = [[known[at] if at < len(known) else None for known in answers] for at in range(most)]
    resamples = RESAMPLES if len(predictions) > 1 else 1
    found = _bleu(tokenize=_cut_for_bleu(answers)).corpus_score(list(predictions), columns, n_bootstrap=resamples)
    spread = getattr(found, "_ci", -1.0)
    return Estimate(found.score / 100, spread / NORMAL_95 / 100 if len(predictions) > 1 else None)


def tokenizers(kind: str, answers: Sequence[Sequence[str]]) -> dict[str, str]:
    """What cuts the texts of a kind of task into words, by metric."""
    if kind == "classification":
        return {}
    others = sum(not is_latin(known) for known in answers)
    by_script = f"words, or characters where a script has no spaces, in {others} of {len(answers)} samples"
    if kind == "question-answering":
        return {"f1": f"{TOKENIZERS['f1']}; {by_script}" if others else TOKENIZERS["f1"]}
    rouge = f"{TOKENIZERS['rouge']}; {by_script}" if others else TOKENIZERS["rouge"]
    return {"rouge": rouge, "bleu": _cut_for_bleu(answers)}


def _cut_for_bleu(answers: Sequence[Sequence[str]]) -> str:
    return bleu_tokenizer([one for known in answers for one in known])


def macro_f1(truth: np.ndarray, chosen: np.ndarray) -> Estimate:
    """Mean over classes of F1, of int [samples] each."""
    from_library = _scikit_learn("f1_score")
    return _bootstrapped(lambda rows: from_library(truth[rows], chosen[rows], average="macro"), len(truth))


def area_under_curve(truth: np.ndarray, likelihoods: np.ndarray) -> Estimate | None:
    """Area under the ROC curve; of more than two classes, the mean of one against the rest. None: a class is absent.

    Args:
        truth: int [samples].
        likelihoods: log-likelihoods of the choices, [samples, choices].
    """
    from_library = _scikit_learn("roc_auc_score")
    classes = likelihoods.shape[1]
    shares = np.exp(likelihoods - np.logaddexp.reduce(likelihoods, axis=1, keepdims=True))
    columns = [1] if classes == 2 else range(classes)

    def area(rows: np.ndarray) -> float:
        areas = [from_library(truth[rows] == one, shares[rows, one]) for one in columns if _both(truth[rows] == one)]
        return float(np.mean(areas)) if len(areas) == len(columns) else np.nan

    everything = np.arange(len(truth))
    return None if np.isnan(area(everything)) else _bootstrapped(area, len(truth))


def remark(task: str, broken: int, samples: int) -> str | None:
    """What has to be said of a task some samples of which have likelihoods that are no numbers."""
    if not broken:
        return None
    return f"{broken} of {samples} samples of {task} have a likelihood that is no number, and count as wrong"


def means(columns: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """Means of scores of single samples."""
    return {name: mean(values.astype(float)) for name, values in columns.items()}


def _both(positive: np.ndarray) -> bool:
    return bool(positive.any() and not positive.all())


def _bootstrapped(metric: Callable[[np.ndarray], float], samples: int) -> Estimate:
    """A metric of all samples with its standard error over resampled ones, seeded; a resample may have none."""
    draws = np.random.default_rng(0).integers(0, samples, (RESAMPLES, samples))
    found = np.array([metric(rows) for rows in draws])
    found = found[~np.isnan(found)]
    error = float(found.std(ddof=1)) if samples > 1 and len(found) > 1 else None
    return Estimate(float(metric(np.arange(samples))), error)


def _scikit_learn(name: str) -> Callable[..., float]:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise MissingExtra("scikit-learn", "tasks", "F1 and AUC of a classification") from error
    return getattr(metrics, name)


def _bleu(**options: Any) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingExtra("sacrebleu", "tasks", "BLEU") from error
    return BLEU(**options)
