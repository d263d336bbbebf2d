"""Zeros in weights: which entries go, and what all passes that make them share.

A sparse weight is stored as it was, zeros written out: it takes no less room and no less time, unless a runtime has
kernels for its pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch

from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import Pass
from compressor.quantized import Scheme
from passes.linears import ChosenLinears
from passes.pruning import refuse_cache_scales, refuse_rounded

LARGEST_GROUP = 128  # of a pattern: what is solved together has to hold whole groups

LEAST_ZEROS = 0.05  # share from which on zeros in a weight are no accident, and are kept


class Pattern(NamedTuple):
    """`kept` of every `of` neighbouring inputs are left, at most."""

    kept: int
    of: int


def parse_pattern(text: str) -> Pattern | None:
    """`2:4`, or `none`.

    Raises:
        InputError: it is neither, or leaves nothing or everything.
    """
    if text == "none":
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise InputError(f"pattern={text!r} is not of the form N:M.", "pattern=2:4 keeps two of four neighbours.")
    pattern = Pattern(int(found[1]), int(found[2]))
    if not 0 < pattern.kept < pattern.of:
        raise InputError(
            f"pattern={text} leaves {'nothing' if pattern.kept == 0 else 'everything'}.", "pattern=2:4 leaves half."
        )
    if LARGEST_GROUP % pattern.of:
        raise InputError(
            f"pattern={text}: groups have 2, 4, 8, 16, 32, 64 or {LARGEST_GROUP} neighbours.", "pattern=2:4 works."
        )
    return pattern


def keep_in_rows(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Which entries of scores [out_features, in_features] are left: the highest of each row; bool."""
    least = scores.topk(int(sparsity * scores.shape[1]), dim=1, largest=False, sorted=False).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, least, False)


def keep_anywhere(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The same, the highest of all."""
    return keep_in_rows(scores.reshape(1, -1), sparsity).view(scores.shape)


def keep_of_neighbours(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The same, the highest of each group of neighbouring inputs."""
    grouped = scores.reshape(-1, pattern.of)
    return keep_in_rows(grouped, 1 - pattern.kept / pattern.of).view(scores.shape)


def keep(
    scores: torch.Tensor, sparsity: float, pattern: Pattern | None, among: Callable[[torch.Tensor, float], torch.Tensor]
) -> torch.Tensor:
    """The same, by the pattern or, where there is none, the highest `among` each row or all."""
    return among(scores, sparsity) if pattern is None else keep_of_neighbours(scores, pattern)


def kept_entries(weight: torch.Tensor) -> torch.Tensor | None:
    """Which entries are not zero, bool of the weight's shape; None of a weight that was not pruned."""
    kept = weight != 0
    return kept if kept.numel() - int(kept.count_nonzero()) >= LEAST_ZEROS * kept.numel() else None


@dataclass(frozen=True)
class _Options(Pass):
    """Apart from `SparsityPass` only so that listings show them before the options of `ChosenLinears`."""

    sparsity: float = option(0.5, "share of each weight's entries that become zero; a pattern has its own")
    pattern: str = option("none", "N:M keeps N of every M neighbouring inputs, such as 2:4")


@dataclass(frozen=True)
class SparsityPass(ChosenLinears, _Options):
    """Base of passes that set entries of weights to zero. The shapes stay as they are."""

    zeros: ClassVar[Literal["makes", "keeps", "fills"]] = "makes"

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        refuse_rounded(schemes)
        shapes = architecture.linears()
        self._check({name: shapes[name][1] for name in self.chosen(architecture)})
        return {}

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        return refuse_cache_scales(present)

    @property
    def pattern_kept(self) -> Pattern | None:
        """What `pattern` spells."""
        return parse_pattern(self.pattern)

    def _check(self, widths: Mapping[str, int]) -> None:
        """Refuse options that do not fit linears of these input widths."""
        if not widths:
            raise InputError("No layer is left to prune.", "Give fewer skip patterns.")
        if not 0 < self.sparsity < 1:
            kept = "nothing" if self.sparsity >= 1 else "everything"
            raise InputError(f"sparsity={self.sparsity:g} leaves {kept}.", "0.5 leaves half.")
        pattern = self.pattern_kept
        if pattern is not None:
            self._check_pattern(pattern, widths)
            return
        name, width = min(widths.items(), key=lambda item: item[1])
        if int(self.sparsity * width) == 0:
            raise InputError(f"sparsity={self.sparsity:g} of the {width} inputs of {name} is none of them.")

    def _check_pattern(self, pattern: Pattern, widths: Mapping[str, int]) -> None:
        share = 1 - pattern.kept / pattern.of
        if self.sparsity not in (0.5, share):
            raise InputError(
                f"pattern={self.pattern} makes {share:.4g} of the entries zero, and not {self.sparsity:g}.",
                "Leave out one of both.",
            )
        misfits = [name for name, width in widths.items() if width % pattern.of]
        if misfits:
            raise InputError(
                f"pattern={self.pattern} does not divide the input width {widths[misfits[0]]} of {misfits[0]}"
                + (f" (and of {len(misfits) - 1} more layers)." if len(misfits) > 1 else "."),
                f"Leave out pattern: sparsity={share:.4g} alone works.",
            )
