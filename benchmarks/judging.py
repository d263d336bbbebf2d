"""Judges the folder of every row by one code, ours: the original and the row on the same held-out tokens."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from rows import Bench, Judgement, Row

from calibration.dataset import digest_tokens
from compressor.checkpoint import Checkpoint
from compressor.errors import LlmcError
from compressor.measure.accuracy import Reference, Report, checkpoint_scores
from compressor.measure.zeros import share_of_zeros


@dataclass(frozen=True)
class Judge:
    """The original's final hidden states on the evaluation tokens, and the key of judgements made with them."""

    reference: Reference
    key: str

    @classmethod
    def of(cls, model: Path, tokens: torch.Tensor, folder: Path) -> Judge:
        """Run the original, unless its states on these tokens are in `folder` already."""
        original = Checkpoint.open(model)
        key = sha256((original.digest + digest_tokens(tokens)).encode()).hexdigest()
        store = folder / f"{key[:16]}.npy"
        if store.exists():
            states = torch.from_numpy(np.lib.format.open_memmap(store, mode="r+"))
            return cls(Reference(original, tokens, states), key)
        folder.mkdir(parents=True, exist_ok=True)
        partial = store.with_suffix(".partial")
        reference = Reference.make(original, tokens, partial, _report("the original"))
        partial.rename(store)
        return cls(reference, key)

    def judge(self, bench: Bench, row: Row) -> None:
        """Judge a row's folder if there is one; a judgement on the same tokens stands, unless it failed."""
        result = bench.result(row)
        if result is None:
            return
        found = result.judgement
        if found is None or found.key != self.key or found.problem is not None:
            bench.save(row, replace(result, judgement=self._judgement(bench.folder(row), row.name)))

    def _judgement(self, folder: Path, name: str) -> Judgement:
        try:
            checkpoint = Checkpoint.open(folder)
            windows = checkpoint_scores(checkpoint, self.reference, _report(name)).windows()
            counted = (checkpoint.nbytes, checkpoint.architecture.parameters, share_of_zeros(checkpoint))
            return Judgement(self.key, windows.tolist(), linear_bits(checkpoint), *counted)
        except LlmcError as error:
            return Judgement(self.key, problem=str(error))


def linear_bits(checkpoint: Checkpoint) -> float:
    """Mean bits of a weight of the decoder's linears, with scales counted as 16-bit numbers; lm_head is left out."""
    linears = {f"{name}.weight" for name in checkpoint.architecture.linears() if name != "lm_head"}
    bits = weights = 0
    for index in range(checkpoint.architecture.layers):
        for name, weight in checkpoint.block(f"layers.{index}").weights.items():
            if name in linears:
                bits += 8 * weight.nbytes if isinstance(weight, torch.Tensor) else weight.storage_bits
                weights += math.prod(checkpoint.architecture.linears()[name.removesuffix(".weight")])
    return bits / weights


def _report(name: str) -> Report:
    def report(done: int, total: int) -> None:
        print(f"\rjudging {name}: block {done} of {total} ", end="\n" if done == total else "", file=sys.stderr)

    return report
