"""Recipes of llm-compressor, run as one pass: its integers and scales, in an ordinary step folder.

Library: vllm-project/llm-compressor 0.14, entry point `oneshot`. It loads the whole model, so this is the one pass
whose memory grows with the model's depth.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest.mock import patch

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, MissingExtra, RunError
from compressor.files import TEMPORARY_PREFIX, digest_file
from compressor.options import option
from compressor.pass_ import Need, Pass, PassContext
from compressor.quantized import Scheme
from passes.llmcompressor_recipe import build_modifiers, predict_schemes, read_recipe

NO_PROCESSOR: Any = object()  # our text is tokenized already; where it is given none, it looks for one and fails
MEMORY_NOTE = "llm-compressor holds the whole model in memory while it works"


@dataclass(frozen=True)
class LLMCompressor(Pass):
    """A recipe of llm-compressor, calibrated on the run's own text."""

    name: ClassVar[str] = "llmcompressor"
    summary: ClassVar[str] = "run an llm-compressor recipe; takes the whole model's memory"

    recipe: str = option("", "the recipe, a YAML file of stages and modifiers")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option(
        "auto", "dtype to work in, auto the model's own; scales are in it, and 16-bit targets take 16-bit scales only"
    )

    @property
    def needs(self) -> frozenset[Need]:
        calibrates = any(modifier.requires_calibration_data for modifier in self._modifiers)
        return frozenset({Need.CALIBRATION}) if calibrates else frozenset()

    @property
    def key(self) -> str:
        return f"{self.spelled()} {digest_file(self._path)} {version('llmcompressor')}"

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        architecture.refuse_transposed(self.name)
        if schemes:
            name = next(iter(schemes))
            raise InputError(
                f"{name} is already {schemes[name]}; llm-compressor would round it again.",
                "Run it on the float checkpoint; --requantize dequantizes this one.",
            )
        planned: dict[str, Scheme] = {}
        for modifier in self._quantizing():
            planned |= predict_schemes(modifier, architecture)
        if not planned:
            raise InputError(f"The recipe {self.recipe} quantizes no layer of this model.")
        return planned

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        planned = self.plan(checkpoint.architecture, checkpoint.schemes)
        context.out.parent.mkdir(parents=True, exist_ok=True)
        context.progress(self.name, 0, 1)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=context.out.parent) as folder:
            self._run(checkpoint, Path(folder), context)
            saved = _open_saved(Path(folder))
            if dict(saved.schemes) != planned:
                raise RunError(f"llm-compressor quantized other layers than its recipe {self.recipe} says.")
            # Everything but the weights is the step's own: config.json, tokenizer, provenance.
            result = checkpoint.rewrite(
                context.out,
                lambda block: saved.block(block.name),
                context.provenance,
                dtype=saved.dtype if saved.dtype != checkpoint.dtype else None,
            )
        context.notes.append(MEMORY_NOTE)
        if result.dtype != checkpoint.dtype:
            context.notes.append(f"llm-compressor worked in {self.dtype}; what stays float is stored in it")
        context.progress(self.name, 1, 1)
        return result

    @cached_property
    def _path(self) -> Path:
        if not self.recipe:
            raise InputError("The pass llmcompressor needs a recipe.", "llmcompressor:recipe=FILE.yaml")
        return Path(self.recipe).expanduser()

    @cached_property
    def _modifiers(self) -> list[Any]:
        """Modifiers to ask; a run makes its own, since they carry state."""
        recipe = read_recipe(self._path)
        with _quiet_library():
            return build_modifiers(self._path, recipe)

    def _quantizing(self) -> list[Any]:
        return [modifier for modifier in self._modifiers if hasattr(modifier, "resolved_config")]

    def _run(self, checkpoint: Checkpoint, folder: Path, context: PassContext) -> None:
        """Let llm-compressor work on the checkpoint and save its result in `folder`."""
        with _quiet_library() as warnings, torch.random.fork_rng(devices=[]), _without_pinning():
            from llmcompressor import active_session, oneshot

            torch.manual_seed(context.seed)
            try:
                # Saved before the session is reset: saving asks it for the recipe.
                model = oneshot(
                    model=str(checkpoint.root),
                    precision=self.dtype,
                    recipe=json.dumps(read_recipe(self._path)),
                    dataset=None if context.tokens is None else _loader(context.tokens),
                    processor=NO_PROCESSOR,
                )
                model.save_pretrained(folder, save_compressed=True)
            except (ValueError, TypeError, RuntimeError, NotImplementedError, KeyError, AttributeError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise RunError(f"llm-compressor broke on the recipe {self.recipe}: {first}") from error
            finally:
                active_session().reset()
        context.notes.extend(dict.fromkeys(warnings))


def _loader(tokens: torch.Tensor) -> Any:
    """Our calibration windows, one a batch and in their order."""
    from torch.utils.data import DataLoader

    windows = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in tokens]
    return DataLoader(windows, batch_size=1)  # type: ignore[arg-type]  # a list is a map-style dataset


def _open_saved(folder: Path) -> Checkpoint:
    try:
        return Checkpoint.open(folder)
    except InputError as error:
        raise RunError(f"What llm-compressor saved cannot be held: {error}") from error


@contextmanager
def _quiet_library() -> Iterator[list[str]]:
    """Import llm-compressor and keep it off the terminal; what its modifiers warn of is gathered in the list.

    Raises:
        MissingExtra: it is not installed.
    """
    if find_spec("llmcompressor") is None:
        raise MissingExtra("llmcompressor", "llmcompressor", "The pass llmcompressor")
    warnings: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(redirect_stderr(StringIO()))
        stack.enter_context(patch.object(logging.getLogger("torch.fx._symbolic_trace"), "disabled", True))
        # It would set this one for the whole process, and say so.
        stack.enter_context(patch.dict(os.environ, {"TOKENIZERS_PARALLELISM": "false"}))
        from llmcompressor.logger import LoggerConfig, configure_logger, logger

        configure_logger(LoggerConfig(console_log_level=None))
        sink = logger.add(
            lambda message: warnings.append(message.record["message"]),
            level="WARNING",
            filter="llmcompressor.modifiers",
        )
        stack.callback(logger.remove, sink)
        yield warnings


@contextmanager
def _without_pinning() -> Iterator[None]:
    """Without an accelerator there is no memory to pin, and torch refuses what AWQ asks for unconditionally.

    Pinning only makes copies to an accelerator faster, so that leaving it out changes no number.
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    with patch.object(IntermediatesCache, "pin_memory", lambda *_: None):
        yield
