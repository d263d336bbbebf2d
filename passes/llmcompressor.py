"""Recipes of llm-compressor, run as one pass: its integers and scales, in an ordinary step folder.

Library: vllm-project/llm-compressor 0.14, entry point `oneshot`, in an environment of its own. It loads the whole
model, so this is the one pass whose memory grows with the model's depth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.engine import Engine
from compressor.errors import InputError, RunError
from compressor.files import TEMPORARY_PREFIX, digest_file
from compressor.options import option
from compressor.pass_ import Need, Pass, PassContext
from compressor.quantized import Scheme
from passes.llmcompressor_engine import LLMCOMPRESSOR, ask, version
from passes.llmcompressor_recipe import predict_schemes, read_recipe, wants_text

MEMORY_NOTE = "llm-compressor holds the whole model in memory while it works"


@dataclass(frozen=True)
class LLMCompressor(Pass):
    """A recipe of llm-compressor, calibrated on the run's own text."""

    name: ClassVar[str] = "llmcompressor"
    summary: ClassVar[str] = "run a recipe of llm-compressor in its own environment; holds the whole model in memory"
    engine: ClassVar[Engine] = LLMCOMPRESSOR

    recipe: str = option("", "the recipe, a YAML file of stages and modifiers")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option(
        "auto", "dtype to work in, auto the model's own; scales are in it, and 16-bit targets take 16-bit scales only"
    )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION}) if wants_text(self._path, self._recipe) else frozenset()

    @property
    def key(self) -> str:
        return f"{self.spelled()} {digest_file(self._path)} {version()}"

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        architecture.refuse_transposed(self.name)
        if schemes:
            name = next(iter(schemes))
            raise InputError(
                f"{name} is already {schemes[name]}; llm-compressor would round it again.",
                "Run it on the float checkpoint; --requantize dequantizes this one.",
            )
        planned = predict_schemes(self._path, self._recipe, architecture)
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
    def _recipe(self) -> dict[str, Any]:
        return read_recipe(self._path)

    def _run(self, checkpoint: Checkpoint, folder: Path, context: PassContext) -> None:
        """Let llm-compressor work on the checkpoint and save its result in `folder`."""
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder.parent) as scratch:
            answer = ask(
                {
                    "do": "run",
                    "recipe": self._recipe,
                    "model": str(checkpoint.root.absolute()),
                    "dtype": self.dtype,
                    "tokens": None if context.tokens is None else _written(context.tokens, Path(scratch)),
                    "seed": context.seed,
                    "out": str(folder.absolute()),
                }
            )
        if "broke" in answer:
            raise RunError(f"llm-compressor broke on the recipe {self.recipe}: {answer['broke']}")
        context.notes.extend(answer["warnings"])


def _written(tokens: torch.Tensor, folder: Path) -> str:
    """A file of the calibration windows, int64 [samples, length]."""
    file = folder.absolute() / "tokens.npy"
    np.save(file, tokens.numpy())
    return str(file)


def _open_saved(folder: Path) -> Checkpoint:
    try:
        return Checkpoint.open(folder)
    except InputError as error:
        raise RunError(f"What llm-compressor saved cannot be held: {error}") from error
