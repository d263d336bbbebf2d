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
from compressor.measure.answers import Continuation
from compressor.open_folder import open_folder
from compressor.tasks.scoring import Prompter, Writer

DEFAULT_TOKENS = 256  # of a generation, as of lm-eval's own models
LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


@register_model("llmc")
class LlmcLM(TemplateLM):
    """Asks a folder through `compressor.measure.answers`, one sample at a time.

    Args:
        pretrained: a model folder, a step of a run, or an artifact.
        progress: called as (what, done, total).
        others: what lm-eval gives every model: batch size and device, which do not matter here.

    Raises:
        InputError: the folder is none of these.
        RunError: the artifact's runtime is not here.
    """

    def __init__(self, pretrained: str, progress: Progress = lambda *_: None, **others: Any) -> None:
        super().__init__()
        unknown = others.keys() - {"batch_size", "max_batch_size", "device"}
        if unknown:
            raise InputError(f"The model type llmc knows no argument {sorted(unknown)[0]!r}; it takes pretrained.")
        self._scratch = tempfile.TemporaryDirectory(prefix="llmc-")
        path = Path(pretrained)
        self._answerer, self.tokenizer, architecture = open_folder(path, Path(self._scratch.name), progress)
        self._prompter = Prompter.of(self.tokenizer, path, architecture)
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
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
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
        found = []
        for number, (context, settings) in enumerate((request.args for request in requests), start=1):
            found.append(self._generated(context, settings))
            self.cache_hook.add_partial("generate_until", (context, settings), found[-1])
            self._progress("asking", number, len(requests))
        return found

    def _generated(self, context: str, settings: dict[str, Any]) -> str:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, DEFAULT_TOKENS))
        if asked.get("do_sample"):
            raise InputError("llmc generates greedily; the task asks for sampling (do_sample, temperature).")
        until = handle_stop_sequences(asked.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        limit = asked["max_gen_toks"]
        if limit >= self.max_length:
            raise InputError(f"The task asks for {limit} tokens, and the model's context is {self.max_length}.")
        prompt = self.tok_encode(context)[-(self.max_length - limit) :]
        writer = Writer(self.tokenizer, self._prompter.ends, tuple(until))
        tokens = self._answerer.generate(prompt, limit, writer.ended)
        return postprocess_generated_text(self.tokenizer.decode(tokens, skip_special_tokens=True), until, None)
