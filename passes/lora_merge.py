"""Merging adapters: a LoRA fine-tune and its base become one ordinary checkpoint.

Each weight is read, changed in float32 and rounded once to the dtype it is stored in, as peft's `merge_and_unload` does
it (peft rounds more than once where several adapters are merged in turn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch

from compressor.adapter import Adapter, open_adapter
from compressor.adapter.folder import pickle_of
from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.files import digest_file, digest_json
from compressor.inside import commit_of, told_commit
from compressor.options import option
from compressor.pass_ import Pass, PassContext
from compressor.quantized import Scheme
from passes.lora_adapted import AdaptedCheckpoint
from passes.lora_base import base_notes
from passes.lora_edits import Edits
from passes.lora_place import place
from passes.lora_stream import write_merged
from passes.lora_tokenizer import Choice, brought, check_rows, tokenizer_notes
from passes.refusals import refuse_quantized


@dataclass(frozen=True)
class LoraMerge(Pass):
    """Merge PEFT adapters into the model they were trained on."""

    name: ClassVar[str] = "lora-merge"
    summary: ClassVar[str] = "merge LoRA, rsLoRA, DoRA, LoHa or LoKr adapters as PEFT does; `--adapter` puts it first"
    comes_first: ClassVar[bool] = True

    adapter: tuple[str, ...] = option((), "adapter folders or hub ids")
    weights: tuple[float, ...] = option((), "what each adapter's change is multiplied by; 1 when none are given")
    combination: Literal["cat", "linear"] = option(
        "cat", "several LoRAs: cat sums their changes, linear their factors (peft's add_weighted_adapter)"
    )
    tokenizer: Choice = option("auto", "whose tokenizer and chat template: auto is the adapter's where it brings one")
    dtype: Literal["auto", "float32"] = option("auto", "auto rounds to what the checkpoint has; float32 does not round")

    @property
    def key(self) -> str:
        files = {name: digest_file(path) for name, path in self._brought.items()}
        return f"{self.name} {self._digest} {self.dtype}" + (f" {digest_json(files)}" if files else "")

    @property
    def pickles(self) -> list[str]:
        found = [pickle_of(source) for source in self.adapter]
        return [str(path) for path in found if path is not None]

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        refuse_quantized(
            schemes,
            "; an adapter is merged into float weights, which are rounded afterwards",
            "Merge into the float model that it was made from; --requantize dequantizes this one first.",
        )
        self._edits(architecture)
        for adapter in self._adapters:
            adapter.check_finite()
        return {}

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        if present:
            raise InputError(
                "The model has scales of an fp8 key-value cache, which were calibrated without the adapter.",
                "Merge first, and calibrate the cache afterwards.",
            )
        return False

    def reshaped(self, architecture: Architecture) -> Architecture:
        edits = self._edits(architecture)
        tied = architecture.tied_embeddings and not edits.unties
        return replace(architecture, tied_embeddings=tied, vocab_size=edits.vocab_size)

    def original(self, checkpoint: Checkpoint) -> Checkpoint:
        return self._adapted(checkpoint, rounded=False)

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        adapted = self._adapted(checkpoint, rounded=self.dtype == "auto")
        dtype = None if self.dtype == "auto" else torch.float32
        provenance = {**context.provenance, "adapters": self._provenance()}
        result = write_merged(adapted, context.out, provenance, dtype, context.progress)
        context.notes.extend(self._commits())
        context.notes.extend(note for one in self._adapters for note in base_notes(one, checkpoint))
        context.notes.extend([*adapted.edits.notes, *tokenizer_notes(checkpoint.root, self._brought)])
        return result

    @cached_property
    def _adapters(self) -> list[Adapter]:
        if not self.adapter:
            raise InputError("The pass lora-merge needs an adapter.", "--adapter DIR, or lora-merge:adapter=DIR")
        twice = next((source for source in self.adapter if self.adapter.count(source) > 1), None)
        if twice is not None:
            raise InputError(f"The adapter {twice} is given twice.", "Give it once, with the sum of its weights.")
        return [open_adapter(source) for source in self.adapter]

    @cached_property
    def _brought(self) -> Mapping[str, Path]:
        """Files of the adapters' tokenizer."""
        return brought(self._adapters, self.tokenizer)

    @property
    def _factors(self) -> tuple[float, ...]:
        if self.weights and len(self.weights) != len(self.adapter):
            raise InputError(f"There are {len(self.adapter)} adapters and {len(self.weights)} weights.")
        return self.weights or (1.0,) * len(self.adapter)

    def _edits(self, architecture: Architecture) -> Edits:
        return place(self._adapters, self._factors, self.combination, architecture)

    @cached_property
    def _digest(self) -> str:
        return digest_json({"adapters": self._described(), "combination": self.combination})

    def _described(self) -> list[dict[str, object]]:
        """The adapters' content, and how much of each, for provenance."""
        return [
            {"digest": one.digest, "weight": weight, "base": one.base, "revision": one.config.get("revision")}
            for one, weight in zip(self._adapters, self._factors, strict=True)
        ]

    def _provenance(self) -> list[dict[str, object]]:
        """The same, with the commits of those that are the hub's."""
        return [told | told_commit(one.root) for told, one in zip(self._described(), self._adapters, strict=True)]

    def _commits(self) -> list[str]:
        found = ((one.source, commit_of(one.root)) for one in self._adapters)
        return [f"{source} is from the Hugging Face hub, commit {commit}" for source, commit in found if commit]

    def _adapted(self, checkpoint: Checkpoint, rounded: bool) -> AdaptedCheckpoint:
        edits, reshaped = self._edits(checkpoint.architecture), self.reshaped(checkpoint.architecture)
        check_rows(self._brought, reshaped)
        return AdaptedCheckpoint(
            checkpoint.root,
            {**checkpoint.config, **_changed_settings(edits, checkpoint.architecture)},
            reshaped,
            checkpoint.tensors,
            checkpoint.schemes,
            base=checkpoint,
            edits=edits,
            rounded=rounded,
            adapters_digest=self._digest,
            brought=self._brought,
        )


def _changed_settings(edits: Edits, architecture: Architecture) -> dict[str, object]:
    """What config.json says of a model with these edits, where it has to say something else."""
    untied = {"tie_word_embeddings": False} if edits.unties else {}
    return untied | ({"vocab_size": edits.vocab_size} if edits.vocab_size != architecture.vocab_size else {})
