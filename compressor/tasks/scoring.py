"""A model's answers to a task, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architecture import Architecture
from compressor.end_tokens import EndTokens
from compressor.errors import InputError
from compressor.measure.accuracy import Report
from compressor.measure.answers import Answerer, Continuation
from compressor.measure.statistics import Estimate
from compressor.tasks import metrics
from compressor.tasks.task import Classification, LoadedTask, QuestionAnswering, Sample, Task
from compressor.templates import render_chat
from compressor.tokenizer import encode_once


@dataclass(frozen=True)
class Scores:
    """What a model made of a task.

    Attributes:
        predictions: the choice, or the text that was generated, of each sample.
        columns: scores of each sample, 0 to 1 and larger is better, [samples] each, by the name of the metric.
        metrics: of all samples: the means of `columns`, and those that are no means.
        likelihoods: of a classification, log-likelihoods of the choices, [samples, choices].
    """

    predictions: list[str]
    columns: dict[str, np.ndarray]
    metrics: dict[str, Estimate]
    likelihoods: np.ndarray | None = None

    @property
    def broken(self) -> int:
        """Samples with a likelihood that is no number; they count as wrong."""
        return 0 if self.likelihoods is None else int((~np.isfinite(self.likelihoods).all(axis=1)).sum())


@dataclass(frozen=True)
class Prompter:
    """Turns prompts into token ids, as the model's tokenizer does.

    Attributes:
        longest: tokens that the model has positions for.
        ends: tokens that end a generation, of which a model may have several.
    """

    tokenizer: Any
    longest: int
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, root: Path, architecture: Architecture) -> Prompter:
        """For the model or the artifact in the folder `root`."""
        return cls(tokenizer, architecture.max_positions, frozenset(EndTokens.of(root, tokenizer).ids))

    def text(self, task: Task, sample: Sample) -> tuple[str, bool]:
        """The text of a prompt, and whether the tokenizer's special tokens are still to be added to it."""
        if not task.chat:
            return sample.prompt, True
        if not self.tokenizer.chat_template:
            raise InputError(f"{task.task} has chat prompts, and the model's tokenizer has no chat template.")
        return self._chat(sample.prompt), False

    def _chat(self, message: str) -> str:
        messages = [{"role": "user", "content": message}]
        return render_chat(self.tokenizer, messages, f"The prompt {message[:40]!r}", add_generation_prompt=True)

    def encode(self, prompt: str, chat: bool, room: int) -> list[int]:
        """Tokens of a prompt that is of no task; of a user's message, where it is for the chat template.

        Raises:
            InputError: there is no chat template, or with `room` more tokens it is longer than the model's context.
        """
        if chat and not self.tokenizer.chat_template:
            raise InputError("The model's tokenizer has no chat template.", "Leave out chat=True.")
        tokens = self._encode(self._chat(prompt) if chat else prompt, not chat)
        if not tokens:
            raise InputError("The prompt has no token.")
        return self._fitting(tokens, room, "The prompt")

    def prompt(self, task: Task, sample: Sample, room: int) -> list[int]:
        """Tokens of a prompt.

        Raises:
            InputError: with `room` more tokens it is longer than the model's context.
        """
        return self._fitting(self._encode(*self.text(task, sample)), room, f"Line {sample.line}")

    def continuation(self, task: Task, sample: Sample, choice: str) -> Continuation:
        """Prompt and choice in one. Spaces at the prompt's end belong to the choice, as tokenizers want it."""
        text, special = self.text(task, sample)
        kept = text.rstrip()
        start = self._encode(kept, special) if kept else []
        whole = self._encode(text + choice, special)
        first = min(len(start), len(whole) - 1)
        if first < 1:
            raise InputError(f"The prompt of line {sample.line} has no token that a choice could follow.")
        return Continuation(self._fitting(whole, 0, f"Line {sample.line}"), first)

    def _encode(self, text: str, special: bool) -> list[int]:
        if special:
            return encode_once(self.tokenizer, text)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _fitting(self, tokens: list[int], room: int, what: str) -> list[int]:
        if len(tokens) + room > self.longest:
            more = f" and {room} to be generated" if room else ""
            raise InputError(
                f"{what} has {len(tokens)} tokens{more}, and the model's context is {self.longest}.",
                "Shorten it, or take it out.",
            )
        return tokens


def score(loaded: LoadedTask, answerer: Answerer, prompter: Prompter, progress: Report) -> Scores:
    """Ask a model all samples of a task.

    Raises:
        InputError: a sample does not fit the model, or a package for the metrics is missing.
    """
    if isinstance(loaded.task, Classification):
        return _classified(loaded.task, loaded.samples, answerer, prompter, progress)
    return _generated(loaded, answerer, prompter, progress)


def check(loaded: LoadedTask, prompter: Prompter) -> None:
    """See that a task can be asked, before there is anything to ask.

    Raises:
        InputError: a sample does not fit the model, or a package for the metrics is missing.
    """
    metrics.check_installed(loaded.task.kind)
    if isinstance(loaded.task, Classification):
        _continuations(loaded.task, loaded.samples, prompter)
    else:
        _prompts(loaded, prompter)


def _continuations(task: Classification, samples: Sequence[Sample], prompter: Prompter) -> list[Continuation]:
    return [prompter.continuation(task, sample, choice) for sample in samples for choice in task.choices]


def _prompts(loaded: LoadedTask, prompter: Prompter) -> list[list[int]]:
    task = loaded.task
    assert not isinstance(task, Classification)
    return [prompter.prompt(task, sample, task.max_tokens) for sample in loaded.samples]


def _classified(
    task: Classification, samples: Sequence[Sample], answerer: Answerer, prompter: Prompter, progress: Report
) -> Scores:
    found = answerer.likelihoods(_continuations(task, samples, prompter), progress)
    likelihoods = np.array([one.total for one in found]).reshape(len(samples), len(task.choices))
    if task.normalize:
        likelihoods /= [len(choice.encode()) for choice in task.choices]
    truth = np.array([sample.answers for sample in samples])
    chosen = likelihoods.argmax(axis=1)
    columns = {"accuracy": (chosen == truth) & np.isfinite(likelihoods).all(axis=1)}
    summary = metrics.means(columns) | {"macro_f1": metrics.macro_f1(truth, chosen)}
    if (area := _area(truth, likelihoods)) is not None:
        summary["auc"] = area
    predictions = [task.choices[index].strip() for index in chosen]
    return Scores(predictions, columns, summary, likelihoods)


def _area(truth: np.ndarray, likelihoods: np.ndarray) -> Estimate | None:
    return metrics.area_under_curve(truth, likelihoods) if np.isfinite(likelihoods).all() else None


def _generated(loaded: LoadedTask, answerer: Answerer, prompter: Prompter, progress: Report) -> Scores:
    task = loaded.task
    assert not isinstance(task, Classification)
    writer = Writer(prompter.tokenizer, prompter.ends, tuple(task.stop))
    written = answerer.generate(_prompts(loaded, prompter), task.max_tokens, writer.ended, progress)
    predictions = [writer.text(tokens).strip() for tokens in written]
    answers = [one.answers for one in loaded.samples if not isinstance(one.answers, int)]
    if isinstance(task, QuestionAnswering):
        columns = {
            name: np.array([metric(text, known) for text, known in zip(predictions, answers, strict=True)])
            for name, metric in (("exact_match", metrics.exact_match), ("f1", metrics.token_f1))
        }
        return Scores(predictions, columns, metrics.means(columns))
    columns = metrics.rouge(predictions, answers) | {"sentence_bleu": metrics.sentence_bleu(predictions, answers)}
    return Scores(predictions, columns, metrics.means(columns) | {"bleu": metrics.corpus_bleu(predictions, answers)})


def tokenizers_of(loaded: LoadedTask) -> dict[str, str]:
    """What cuts the answers of a task into words, by metric."""
    answers = [one.answers for one in loaded.samples if not isinstance(one.answers, int)]
    return metrics.tokenizers(loaded.task.kind, answers)


@dataclass(frozen=True)
class Writer:
    """Text of generated tokens, which ends where the model says so or at a stop string."""

    tokenizer: Any
    ends: frozenset[int]
    stop: tuple[str, ...]

    def ended(self, tokens: list[int]) -> bool:
        """Whether a generation is at its end."""
        return tokens[-1] in self.ends or any(one in self._decoded(tokens) for one in self.stop)

    def text(self, tokens: list[int]) -> str:
        """What was generated, without what stopped it."""
        text = self._decoded(tokens)
        ends = [place for one in self.stop if (place := text.find(one)) >= 0]
        return text[: min(ends, default=len(text))]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
