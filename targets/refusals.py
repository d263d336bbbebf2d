"""Reasons for a refusal: what several runtimes share, and one sentence for many layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from compressor.architecture import Architecture
from compressor.quantized import Scheme

LayerRule = Callable[[Scheme, int, int], Iterable[str]]  # scheme, out_features, in_features -> reasons


def refusals(
    runtime: str,
    rule: LayerRule,
    architecture: Architecture,
    schemes: Mapping[str, Scheme],
    example: str = "gptq:bits=4",
    fuses: bool = True,
) -> list[str]:
    """What `rule` says of each quantized layer, and the fused groups whose layers do not share one scheme.

    Layers with the same reason share a sentence, which names the first of them and how many more there are.

    Args:
        example: the pass that is suggested where nothing is quantized.
        fuses: whether the runtime makes one matrix of q, k and v, and one of gate and up.
    """
    if not schemes:
        return [f"No layer is quantized; add a quantizing pass such as {example}."]
    layers = defaultdict(list)
    shapes = architecture.linears()
    for name, scheme in schemes.items():
        for reason in rule(scheme, *shapes[name]):
            layers[reason].append(name)
    for name, reason in _unequal_groups(runtime, architecture, schemes) if fuses else ():
        layers[reason].append(name)
    return [f"{_listed(names)}: {reason}." for reason, names in layers.items()]


def kind_reasons(scheme: Scheme, kind: str, works: str) -> Iterable[str]:
    """Why a target that holds one kind of weights (int4), with activations in 16 bits, does not take `scheme`."""
    if scheme.kind != kind:
        yield f"{scheme.kind} is not what this target holds; {works} works"
    elif scheme.activations is not None:
        yield f"{scheme.activations} are not what this target computes with; activations=none works, or the target hf"


def one_scheme(schemes: Mapping[str, Scheme]) -> list[str]:
    """Why a folder whose settings hold for all of its quantized layers does not take `schemes`."""
    first: dict[Scheme, str] = {}
    for name, scheme in schemes.items():
        first.setdefault(scheme, name)
    if len(first) <= 1:
        return []
    listed = " and ".join(f"{name} is {scheme}" for scheme, name in list(first.items())[:2])
    return [f"{listed}; this format has one scheme for all quantized layers, so the same options for all work."]


def _unequal_groups(
    runtime: str, architecture: Architecture, schemes: Mapping[str, Scheme]
) -> Iterable[tuple[str, str]]:
    for index in range(architecture.layers):
        for group in architecture.fused_linears(index):
            found = [schemes.get(name) for name in group]
            if len(set(found)) == 1:
                continue
            names = "/".join(name.rpartition(".")[2] for name in group)
            if None in found:
                skipped = group[found.index(None)]
                yield skipped, f"left float, but {runtime} fuses {names}; quantize all of them, or skip all of them"
            else:
                yield group[0], f"{runtime} fuses {names}, which have different schemes; give all of them the same"


def _listed(names: list[str]) -> str:
    others = len(names) - 1
    return names[0] if not others else f"{names[0]} and {others} more layer{'s' if others > 1 else ''}"
