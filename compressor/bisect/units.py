"""What of a pass's step can be taken back by itself: single linears, those that a runtime fuses, or whole blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from compressor.checkpoint import Block, Checkpoint
from compressor.decoder import Decoder
from compressor.families import HEAD
from compressor.measure.accuracy import Report
from compressor.measure.layers import LENGTH, WINDOWS, relative
from compressor.pass_ import Pass
from compressor.target import Target


@dataclass(frozen=True)
class Unit:
    """Layers that are taken back together.

    Attributes:
        linears: their full names; that of a table, for an embedding.
        prefixes: what names of their parameters start with.
        block: the decoder block that they lie in; None for tables.
        error: what the pass did to the block's outputs by them alone, relative to what the block adds to the residual
            stream; None for tables.
    """

    linears: tuple[str, ...]
    prefixes: tuple[str, ...]
    block: int | None
    error: float | None = None

    @property
    def name(self) -> str:
        """`model.layers.0.self_attn.q_proj/k_proj/v_proj`, or the block's where it is all of one."""
        if self.block is not None and self.prefixes[0].count(".") < self.linears[0].count("."):
            return self.prefixes[0].rstrip(".")
        first, *others = self.linears
        return "/".join([first, *(name.rpartition(".")[2] for name in others)])


def units_of(one: Pass, target: Target, before: Checkpoint, step: Checkpoint) -> list[Unit]:
    """What can be taken back of the step that a pass left, in the order of the model. Errors are not known yet.

    A pass that changes more than the weights of linears (AWQ moves scales between norms and linears) has whole blocks.
    """
    architecture = step.architecture
    rounds_only = one.zeros == "makes" or not one.changes_floats
    units = list(_tables(before, step, rounds_only))
    changed = [name for name in architecture.linears() if step.schemes.get(name) != before.schemes.get(name)]
    changed = changed or list(architecture.linears())  # a pass that makes zeros keeps the schemes
    fuses = _fuses(target, step)
    for index in range(architecture.layers):
        linears = [name for name in architecture.block_linears(index) if name in changed]
        if rounds_only:
            groups = _groups(linears, list(architecture.fused_linears(index)) if fuses else [])
            units += [Unit(group, tuple(f"{name}." for name in group), index) for group in groups]
        elif linears:
            units.append(Unit(tuple(linears), (architecture.modules.block(index),), index))
    return units


def with_errors(
    units: Sequence[Unit], before: Checkpoint, step: Checkpoint, tokens: torch.Tensor, progress: Report
) -> list[Unit]:
    """The units with their errors: medians over tokens, each on what the blocks give without the pass.

    Memory is a block of each, and the hidden states of a few windows.

    Args:
        tokens: int64 [windows, length].
    """
    decoder, tokens = Decoder(before), tokens[:WINDOWS, :LENGTH]
    exact, found = decoder.embed(tokens), [unit for unit in units if unit.block is None]
    layers = before.architecture.layers
    for index in range(layers):
        here = [unit for unit in units if unit.block == index]
        old, new = before.block(f"layers.{index}"), step.block(f"layers.{index}")
        outputs = _outputs(decoder, old, index, exact)
        added = outputs - exact
        for unit in here:
            changed = _outputs(decoder, _with(old, new, unit), index, exact)
            found.append(replace(unit, error=relative(changed - outputs, added)))
        exact = outputs
        progress(index + 1, layers)
    return found


def _outputs(decoder: Decoder, block: Block, index: int, hidden: torch.Tensor) -> torch.Tensor:
    outputs = hidden.clone()
    decoder.run(decoder.layer(block), index, outputs)
    return outputs


def _with(old: Block, new: Block, unit: Unit) -> Block:
    return old.with_weights({name: weight for name, weight in new.weights.items() if name.startswith(unit.prefixes)})


def _tables(before: Checkpoint, step: Checkpoint, rounds_only: bool) -> Iterator[Unit]:
    modules = step.architecture.modules
    for block, name in (("embedding", modules.embedding), ("head", HEAD)):
        if step.schemes.get(name) != before.schemes.get(name):
            yield Unit((name,), (f"{name}.",) if rounds_only else modules.prefixes(block), None)


def _groups(linears: Sequence[str], fused: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Linears in the groups that are fused, each where its first one is."""
    for name in linears:
        group = next((group for group in fused if name in group), (name,))
        if name == next(other for other in group if other in linears):
            yield group


def _fuses(target: Target, step: Checkpoint) -> bool:
    """Whether the target minds when only one of the linears that a runtime may fuse is left as it is."""
    architecture = step.architecture
    linears = {name: scheme for name, scheme in step.schemes.items() if name != architecture.embedding}
    group = next(architecture.fused_linears(0), ())
    split = {name: scheme for name, scheme in linears.items() if name not in group[:1]}
    whole = {name: scheme for name, scheme in linears.items() if name not in group}
    known = set(target.problems(architecture, whole))
    return any(problem not in known for problem in target.problems(architecture, split))
