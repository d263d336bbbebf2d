"""Mixed precision: each layer gets the bits and the group size that its measured sensitivity is worth, within a budget.

The layers that a runtime fuses share one scheme. Sensitivities come from `passes.sensitivity`, the choice from
`passes.allocation`; the weights are then rounded by GPTQ.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.families import FUSED_LINEARS
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.allocation import allocate
from passes.gptq import GPTQ
from passes.grid import fit_grid, quantize
from passes.quantizing import GROUP_SIZES
from passes.sensitivity import Importance, importances

# Bits, and what shares a scale.
Candidate = Literal["4g32", "4g64", "4g128", "4channel", "8g32", "8g64", "8g128", "8channel"]
Group = tuple[str, ...]  # linears that a runtime fuses
SHOWN = 5  # groups that the ledger names


@dataclass(frozen=True)
class Choice:
    """One way to round a group of linears.

    Attributes:
        candidate: as it is spelled.
        bits: what the group then takes, scales and zero points included.
        divergence: what it costs, in nats a token.
    """

    candidate: str
    scheme: Scheme
    bits: int
    divergence: float


def fused_groups(linears: Iterable[str]) -> list[Group]:
    """Linears, by full name, in the groups that runtimes fuse; in the order in which they are met."""
    groups: dict[tuple[str, Group], list[str]] = defaultdict(list)
    for name in linears:
        block, body, linear = name.rsplit(".", 2)
        module = f"{body}.{linear}"
        fused = next((group for group in FUSED_LINEARS if module in group), (module,))
        groups[block, fused].append(name)
    return [tuple(group) for group in groups.values()]


def parse_candidate(candidate: str, symmetric: bool) -> Scheme:
    """`4g64` or `8channel` as a scheme."""
    bits, group = int(candidate[0]), candidate[1:]
    return Scheme(bits, None if group == "channel" else int(group.removeprefix("g")), symmetric)


def stored_bits(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Bits of a weight [out_features, in_features] with 16-bit scales and zero points, packed without padding."""
    rows, columns = shape
    scales = rows * columns // scheme.group_width(columns)
    return rows * columns * scheme.bits + scales * (16 if scheme.symmetric else 16 + scheme.bits)


def rounding_errors(weight: torch.Tensor, scheme: Scheme, energy: torch.Tensor, search: bool) -> torch.Tensor:
    """Errors [out_features, in_features] of rounding a weight to the nearest codes of the grid that GPTQ uses."""
    floor = energy.mean() * 1e-6 + 1e-12  # inputs that were never active
    # Clipping gains next to nothing where the steps are fine.
    grid = fit_grid(weight, scheme, energy + floor, search and scheme.bits < 8)
    return quantize(weight, scheme, grid).dequantize().sub_(weight)


@dataclass(frozen=True)
class Mixed(GPTQ):
    """GPTQ with the bits and the group size of each layer chosen by measured sensitivity."""

    name: ClassVar[str] = "mixed"
    summary: ClassVar[str] = (
        "choose each layer's bits by its measured sensitivity, within a budget, then run gptq; needs calibration text"
    )

    # A budget in the place of a width.
    bits: float = option(4.5, "average bits per weight, scales and zero points included")  # type: ignore[assignment]
    group_size: Literal[32, 64, 128, "channel"] = option("channel", "the largest group that a layer may get")
    candidates: tuple[Candidate, ...] = option(
        (), "what a layer may get, such as 4g64+8channel; none is 4 bits in every group up to group_size, and 8channel"
    )
    windows: int = option(48, "calibration windows that sensitivity is measured on")

    @property
    def chooses_schemes(self) -> bool:
        return True

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if self.lm_head is True:
            raise InputError("The head's bits are not chosen by sensitivity.", "lm_head=4 and lm_head=8 work.")
        if self.int8:
            raise InputError(f"{self.name} chooses which layers get 8 bits.", "Leave out int8, or give more bits.")
        if self.activations != "none":
            raise InputError(f"{self.name} rounds weights only.", "Leave out activations.")
        rounded = next((name for name, scheme in schemes.items() if scheme.activations), None)
        if rounded:
            raise InputError(
                f"The inputs of {rounded} are rounded, which has no gradient to measure sensitivity by.",
                "Start from the float checkpoint.",
            )
        return super().plan(architecture, schemes)

    def plan_layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        """Each candidate in its turn: which one a layer gets is known when its sensitivity has been measured."""
        body = {name: shape for name, shape in shapes.items() if name != "lm_head"}
        self._check_candidates({shape[1]: name for name, shape in body.items()})
        self._check_budget(body)
        planned = super().plan_layers({name: shape for name, shape in shapes.items() if name == "lm_head"})
        turns: dict[str, int] = {}  # each kind of linear meets each candidate, one a block
        for group in fused_groups(body):
            schemes = list(self._fitting(body[group[0]][1]).values())
            kind = ".".join(group[0].rsplit(".", 2)[1:])
            turn = turns.setdefault(kind, len(turns))
            planned |= dict.fromkeys(group, schemes[turn % len(schemes)])
            turns[kind] = turn + 1
        return planned

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        table = self._measure(checkpoint, context)
        shapes = checkpoint.architecture.linears()
        weights = sum(math.prod(shapes[name]) for group in table for name in group)
        sizes = [[choice.bits for choice in choices] for choices in table.values()]
        losses = [[choice.divergence for choice in choices] for choices in table.values()]
        picked = allocate(sizes, losses, int(self.bits * weights))
        chosen = {group: table[group][index] for group, index in zip(table, picked, strict=True)}
        context.notes.extend(_notes(chosen, shapes, self.bits))
        common = {part.name: getattr(self, part.name) for part in fields(GPTQ) if part.name != "bits"}
        rounding = _Assigned(**common, assigned={name: chosen[group].scheme for group in chosen for name in group})
        provenance = {**context.provenance, "sensitivity": _plain(table, chosen)}
        return rounding.apply(checkpoint, replace(context, provenance=provenance))

    def _measure(self, checkpoint: Checkpoint, context: PassContext) -> dict[Group, list[Choice]]:
        """Every choice of every group of linears that this pass rounds."""
        assert context.tokens is not None  # `needs` says so
        measured = importances(
            checkpoint,
            context.tokens[: self.windows],
            seed=context.seed,
            damping=self.damping,
            act_order=self.act_order,
            dtype=self.working_dtype,
        )
        table = {}
        for done, (block, found) in enumerate(measured, start=1):
            weights = self.weights_to_quantize(block, checkpoint)
            for importance in found:
                group = tuple(name for name in importance.values if name in weights)
                if group:
                    table[group] = self._choices({name: weights[name] for name in group}, importance)
            context.progress(f"{self.name}, sensitivity", done, checkpoint.architecture.layers)
        return table

    def _choices(self, weights: Mapping[str, torch.Tensor], importance: Importance) -> list[Choice]:
        choices = []
        for candidate, scheme in self._fitting(len(importance.energy)).items():
            divergence = sum(
                importance.divergence(name, rounding_errors(weight, scheme, importance.energy, self.scale_search))
                for name, weight in weights.items()
            )
            if not math.isfinite(divergence):
                raise RunError(f"The gradients of {next(iter(weights))} are not finite.", "The model overflows.")
            bits = sum(stored_bits(scheme, (weight.shape[0], weight.shape[1])) for weight in weights.values())
            choices.append(Choice(candidate, scheme, bits, divergence))
        return choices

    def _candidates(self) -> tuple[str, ...]:
        if self.candidates:
            return self.candidates
        sizes = (
            GROUP_SIZES if self.group_size == "channel" else [size for size in GROUP_SIZES if size <= self.group_size]
        )
        return (*(["4channel"] if self.group_size == "channel" else []), *(f"4g{size}" for size in sizes), "8channel")

    def _fitting(self, width: int) -> dict[str, Scheme]:
        """The candidates for layers of this input width: those whose group divides it."""
        schemes = {candidate: parse_candidate(candidate, self.symmetric) for candidate in self._candidates()}
        return {
            candidate: scheme
            for candidate, scheme in schemes.items()
            if scheme.group_size is None or width % scheme.group_size == 0
        }

    def _check_candidates(self, widths: Mapping[int, str]) -> None:
        if not widths:
            raise InputError("No layer is left to choose bits for.", "Give fewer skip patterns.")
        for width, layer in widths.items():
            if not self._fitting(width):
                raise InputError(
                    f"No candidate has a group that divides the input width {width} of {layer}.",
                    "Give one that does, or 4channel, among the candidates.",
                )
        useless = [one for one in self.candidates if not any(one in self._fitting(width) for width in widths)]
        if useless:
            raise InputError(
                f"The group of the candidate {useless[0]} divides no layer's input width.", "Leave it out."
            )

    def _check_budget(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        smallest = sum(
            min(stored_bits(scheme, shape) for scheme in self._fitting(shape[1]).values()) for shape in shapes.values()
        )
        least = smallest / sum(math.prod(shape) for shape in shapes.values())
        if self.bits < least:
            raise InputError(
                f"bits={self.bits:g} is less than the {least:.3f} bits per weight that the smallest candidates take, "
                "scales included.",
                f"{self.name}:bits={math.ceil(least * 100) / 100:g} works.",
            )


@dataclass(frozen=True)
class _Assigned(GPTQ):
    """GPTQ with the scheme of each layer given."""

    name: ClassVar[str] = Mixed.name

    assigned: Mapping[str, Scheme] = field(default_factory=dict)

    def scheme_of(self, layer: str) -> Scheme:
        return self.assigned.get(layer) or super().scheme_of(layer)


def _notes(chosen: Mapping[Group, Choice], shapes: Mapping[str, tuple[int, int]], budget: float) -> Iterable[str]:
    """What was chosen, for the ledger."""
    weights = {group: sum(math.prod(shapes[name]) for name in group) for group in chosen}
    total = sum(weights.values())
    integers = sum(weights[group] * choice.scheme.bits for group, choice in chosen.items()) / total
    stored = sum(choice.bits for choice in chosen.values()) / total
    yield f"{stored:.3f} bits per weight, {integers:.3f} without scales and zero points; the budget was {budget:g}"
    counts: Counter[str] = Counter()
    for group, choice in chosen.items():
        counts[str(choice.scheme)] += len(group)
    yield ", ".join(f"{count} linears in {scheme}" for scheme, count in counts.most_common())
    expected = sum(choice.divergence for choice in chosen.values())
    yield f"sensitivities add up to a divergence of {expected:.3g} nats a token"
    worst = sorted(chosen, key=lambda group: chosen[group].divergence, reverse=True)[:SHOWN]
    listed = (f"{group[0]} {chosen[group].divergence:.2g} in {chosen[group].candidate}" for group in worst)
    yield "most of it from " + ", ".join(listed)


def _plain(table: Mapping[Group, list[Choice]], chosen: Mapping[Group, Choice]) -> list[dict[str, Any]]:
    """The whole table, as JSON values, for the step file: divergences in nats a token."""
    return [
        {
            "linears": list(group),
            "chosen": chosen[group].candidate,
            "bits": {choice.candidate: choice.bits for choice in choices},
            "divergence": {choice.candidate: choice.divergence for choice in choices},
        }
        for group, choices in table.items()
    ]
