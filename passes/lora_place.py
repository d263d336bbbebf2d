"""Where the tensors of adapters belong in a model: every one finds its parameter, or the adapter is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from compressor.adapter import Adapter
from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.families import HEAD
from passes.lora_edits import MAGNITUDE, PRODUCTS, ROWS, Edit, Edits, Shape, product
from passes.lora_expected import check_saved_modules, missing_notes, refusal_of_strangers
from passes.lora_tables import vocabulary, with_ties

BIASES = ("bias", "lora_B.bias")
RANKED = {"lora_A", "lora_embedding_A", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"}  # [rank, ...]


def place(adapters: Sequence[Adapter], weights: Sequence[float], combination: str, architecture: Architecture) -> Edits:
    """What these adapters do to a model of this architecture.

    Raises:
        InputError: a tensor has no place in the model or another shape, is the half of something, or adapters that
            cannot be combined are.
    """
    located = [_located(adapter, weight, architecture) for adapter, weight in zip(adapters, weights, strict=True)]
    placed: dict[str, list[Edit]] = {}
    for parameter, edit in itertools.chain.from_iterable(located):
        placed.setdefault(parameter, []).append(edit)
    vocab_size = vocabulary(placed, architecture)
    shapes = _shapes(replace(architecture, vocab_size=vocab_size))
    for edits in located:
        _check_shapes(edits, shapes)
    for parameter, several in placed.items():
        _check_combination(parameter, several, combination)
    made = with_ties(placed, combination, architecture, vocab_size)
    for adapter, edits in zip(adapters, located, strict=True):
        made.notes.extend(missing_notes(adapter, {parameter for parameter, _ in edits}, architecture))
    return made


def _shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shapes of all parameters, with the head that a tied model does not store."""
    return architecture.tensor_shapes() | {f"{HEAD}.weight": (architecture.vocab_size, architecture.hidden_size)}


def _located(adapter: Adapter, weight: float, architecture: Architecture) -> list[tuple[str, Edit]]:
    """An adapter's edits, each with the parameter that it changes."""
    shapes, found, strangers = _shapes(architecture), [], []
    for module, parts in adapter.modules.items():
        for kind, chosen in _by_kind(parts).items():
            parameter = next((n for n in _spellings(f"{module}.{kind}", architecture) if n in shapes), None)
            if parameter is None:
                strangers.append(f"{module}.{kind}")
            else:
                edit = _edit(adapter, weight, module, chosen, architecture.is_transposed(parameter))
                found.append((parameter, edit))
    if strangers:
        raise refusal_of_strangers(adapter, strangers)
    check_saved_modules(adapter, {parameter for parameter, _ in found}, architecture)
    return found


def _check_shapes(edits: Sequence[tuple[str, Edit]], shapes: Mapping[str, Shape]) -> None:
    misfits = []
    for parameter, edit in edits:
        wanted = shapes[parameter]
        found = next((shape for shape in _implied_shapes(edit, wanted) if shape != wanted), None)
        if found is not None:
            misfits.append(f"{parameter} is {_spell(wanted)} here and {_spell(found)} there")
    if misfits:
        adapter = edits[0][1].adapter
        trained = f"It was trained on {adapter.base}." if adapter.base else None
        raise InputError(f"The adapter {adapter.source} is for a model of other shapes: {_list(misfits)}.", trained)


def _spellings(parameter: str, architecture: Architecture) -> list[str]:
    """What a parameter is called here: adapters of a model without a head, or of one with images, say it otherwise."""
    text = parameter.replace("language_model.", "")
    return [parameter, text, f"{architecture.modules.blocks.partition('.')[0]}.{text}"]


def _by_kind(parts: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """A module's parts by the parameter they change, `weight` or `bias`."""
    biases = {part: key for part, key in parts.items() if part in BIASES}
    others = {part: key for part, key in parts.items() if part not in BIASES}
    return {kind: chosen for kind, chosen in (("weight", others), ("bias", biases)) if chosen}


def _edit(adapter: Adapter, weight: float, module: str, parts: Mapping[str, str], transposed: bool) -> Edit:
    scaling = 1.0 if parts.keys() <= {"weight", "bias", ROWS} else adapter.scaling(module)
    rows = adapter.token_indices(module) if ROWS in parts else ()
    return Edit(adapter, weight, module, parts, scaling, rows, transposed)


def _implied_shapes(edit: Edit, wanted: Shape) -> Iterator[Shape]:
    """The shape of the parameter that each of an edit's tensors is made for; `wanted` where a tensor leaves it open."""
    shapes, source, module = edit.shapes(), edit.adapter.source, edit.module
    yield from (shapes[part] for part in ("weight", *BIASES) if part in shapes)
    rest = shapes.keys() - {"weight", *BIASES, MAGNITUDE, ROWS}
    if rest and rest not in PRODUCTS:
        raise InputError(f"The adapter {source} is incomplete: of {module} it has only {', '.join(sorted(rest))}.")
    if rest:
        yield _product_shape(edit)
        if (MAGNITUDE in shapes) != bool(edit.adapter.config.get("use_dora")):
            raise InputError(f"The adapter {source} has magnitudes for some modules only, {module} tells.")
    if MAGNITUDE in shapes:
        (length,) = shapes[MAGNITUDE]
        yield (wanted[0], length) if "lora_embedding_A" in shapes else (length, wanted[1])
    if ROWS in shapes:
        _check_rows(edit, wanted)
        yield wanted[0], shapes[ROWS][1]


def _check_rows(edit: Edit, wanted: Shape) -> None:
    """See that there is a row of the table for every token that was trained alone."""
    source, module, found = edit.adapter.source, edit.module, edit.shapes()[ROWS][0]
    if len(edit.rows) != found:
        raise InputError(
            f"The adapter {source} has {found} trained rows of {module}, and trainable_token_indices names "
            f"{len(edit.rows)} tokens."
        )
    outside = next((row for row in edit.rows if not 0 <= row < wanted[0]), None)
    if outside is not None:
        raise InputError(
            f"The adapter {source} trained token {outside} of {module}, which has {wanted[0]:,} rows here.",
            "If its vocabulary was extended, give the base as transformers' resize_token_embeddings left it.",
        )


def _product_shape(edit: Edit) -> Shape:
    """Of a low-rank product, found by multiplying tensors without content."""
    shapes, source, module = edit.shapes(), edit.adapter.source, edit.module
    ranks = {shapes[part][0] for part in shapes.keys() & RANKED}
    stated = edit.adapter.rank(module)
    if ranks - {stated}:
        raise InputError(f"The adapter {source} says rank {stated} for {module}, whose tensors have {ranks.pop()}.")
    try:
        delta = product({part: torch.empty(shape, device="meta") for part, shape in shapes.items()}, 1.0)
        assert delta is not None
        return tuple(delta.rows(0, delta.shape[0]).shape)
    except (RuntimeError, IndexError) as error:
        raise InputError(f"The adapter {source} has tensors of {module} that do not fit together.") from error


def _check_combination(parameter: str, edits: Sequence[Edit], combination: str) -> None:
    fixed = next((one for one in edits if MAGNITUDE in one.parts or one.replaces), None)
    if fixed is not None and fixed.weight != 1:
        raise InputError(
            f"The adapter {fixed.adapter.source} cannot be weighted: it has {_fixed_part(fixed)} of {parameter}."
        )
    if fixed is not None and len(edits) > 1:
        raise InputError(
            f"The adapters {' and '.join(one.adapter.source for one in edits)} cannot be combined: both change "
            f"{parameter}, and the {_fixed_part(fixed)} of {fixed.adapter.source} fit that adapter alone."
        )
    if combination == "linear" and len(edits) > 1:
        shapes = {tuple(sorted(shape for shape in one.shapes().items())) for one in edits}
        if len(shapes) > 1 or not {"lora_A", "lora_embedding_A"} & edits[0].parts.keys():
            raise InputError(
                f"combination=linear sums factors, and those of {parameter} differ in rank or kind.",
                "combination=cat sums the changes themselves.",
            )


def _fixed_part(edit: Edit) -> str:
    return "DoRA magnitudes" if MAGNITUDE in edit.parts else "newly trained values"


def _spell(shape: Shape) -> str:
    return " × ".join(map(str, shape))


def _list(names: Sequence[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
