"""The model type `llmc` of lm-evaluation-harness: a step folder, or an artifact in its own runtime.

Importing this module registers it: `lm_eval.simple_evaluate(model="llmc", model_args="pretrained=out/artifact")`.
Prompts are made into tokens, cut to the context and ended as lm-eval's own type `hf` does it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from compressor.errors import InputError
from compressor.measure import BATCH_SIZE
from compressor.measure.accuracy import Report
from compressor.measure.answers import Continuation
from compressor.open_folder import open_folder
from compressor.tasks.scoring import Writer
from compressor.templates import render_chat

DEFAULT_TOKENS = 256  # of a generation, as of lm-eval's own models
LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


@register_model("llmc")
class LlmcLM(TemplateLM):
    """Asks a folder through `compressor.measure.answers`.

    Args:
        pretrained: a model folder, a step of a run, or an artifact.
        progress: called as (what, done, total).
        batch_size: texts that a runtime is asked at once, where it takes several; `auto` is the default.
        others: what lm-eval gives every model: largest batch size and device, which do not matter here.

    Raises:
        InputError: the folder is none of these.
        RunError: the artifact's runtime is not here.
    """

    def __init__(
        self,
        pretrained: str,
        progress: Progress = lambda *_: None,
        batch_size: int | str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = others.keys() - {"max_batch_size", "device"}
        if unknown:
            raise InputError(f"The model type llmc knows no argument {sorted(unknown)[0]!r}; it takes pretrained.")
        self._scratch = tempfile.TemporaryDirectory(prefix="llmc-")
        path = Path(pretrained)
        scratch, size = Path(self._scratch.name), _size(batch_size)
        self._answerer, self._prompter = open_folder(path, scratch, progress, size)
        self.tokenizer = self._prompter.tokenizer
        self._progress = progress
        self.runtime = self._answerer.runtime

    def close(self) -> None:
        """Close the runtime."""
        self._answerer.close()
        self._scratch.cleanup()

    @property
    def max_length(self) -> int:
        """Tokens of the model's context."""
        return self._prompter.longest

    @property
    def eot_token_id(self) -> int:
        own = self.tokenizer.eos_token_id
        if own is None and not self._prompter.ends:
            raise InputError(f"{self.tokenizer.name_or_path} names no token that ends a text, which lm-eval asks for.")
        return min(self._prompter.ends) if own is None else own

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return render_chat(
            self.tokenizer,
            chat_history,
            "A chat of the task",
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False  # the text has its first token already, from a chat template
        if add_special_tokens is None:
            return list(self.tokenizer.encode(string))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **others: Any
    ) -> list[tuple[float, bool]]:
        texts = [self._cut(context, continuation) for _, context, continuation in requests]
        found = self._answerer.likelihoods(texts, lambda done, total: self._progress("asking", done, total))
        pairs = [(one.total, one.greedy) for one in found]
        for (key, _, _), pair in zip(requests, pairs, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, pair)
        return pairs

    def _cut(self, context: list[int], continuation: list[int]) -> Continuation:
        """Both together; of what is longer than the context of the model, the end."""
        whole = context + continuation
        if len(whole) > self.max_length:
            LOG.warning("%d tokens are cut to the last %d, the model's context.", len(whole), self.max_length)
        kept = whole[-self.max_length :]
        return Continuation(kept, max(1, len(kept) - len(continuation)))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        found = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,  # a window has one token more than it predicts from
                context_len=1,
            )
            pairs = self._loglikelihood_tokens([(None, *utils.make_disjoint_window(one)) for one in windows])
            found.append(sum(total for total, _ in pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One text a request. Those with the same settings, of which a task has one, are asked together."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        for numbers in alike.values():
            contexts, settings = [requests[number].args[0] for number in numbers], requests[numbers[0]].args[1]
            texts = self._generated(contexts, settings, lambda done, _: self._progress("asking", done, len(requests)))
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [found[number] for number in range(len(requests))]

    def _generated(self, contexts: Sequence[str], settings: dict[str, Any], report: Report) -> list[str]:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, DEFAULT_TOKENS))
        if asked.get("do_sample"):
            raise InputError("llmc generates greedily; the task asks for sampling (do_sample, temperature).")
        until = handle_stop_sequences(asked.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        limit = asked["max_gen_toks"]
        if limit >= self.max_length:
            raise InputError(f"The task asks for {limit} tokens, and the model's context is {self.max_length}.")
        prompts = [self.tok_encode(context)[-(self.max_length - limit) :] for context in contexts]
        writer = Writer(self.tokenizer, self._prompter.ends, tuple(until))
        written = self._answerer.generate(prompts, limit, writer.ended, report)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        return [postprocess_generated_text(text, until, None) for text in texts]


def _size(batch_size: int | str | None) -> int:
    """lm-eval gives what its command line was told: a number, or `auto` with or without one behind a colon."""
    if batch_size is None or str(batch_size).startswith("auto"):
        return BATCH_SIZE
    try:
        return max(1, int(batch_size))
    except ValueError as error:
        raise InputError(f"The batch size {batch_size!r} is no number.", "batch_size=8, or auto") from error
