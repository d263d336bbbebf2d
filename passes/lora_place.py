"""Where the tensors of adapters belong in a model: every one finds its parameter, or the adapter is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from compressor.adapter import Adapter
from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.families import HEAD
from passes.lora_delta import Change, Delta, Hadamard, Kronecker, LowRank, LowRankTable, Shift, combine

MAGNITUDE, ROWS = "lora_magnitude_vector", "trainable_tokens_delta"
# Parts that make one change of a weight; a module has all of one of these.
PRODUCTS = (
    {"lora_A", "lora_B"},
    {"lora_embedding_A", "lora_embedding_B"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    *({*first, *second} for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
      for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})),
)  # fmt: skip

BIASES = ("bias", "lora_B.bias")
RANKED = {"lora_A", "lora_embedding_A", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"}  # [rank, ...]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Edit:
    """What one adapter does to one parameter.

    Attributes:
        parts: keys of its tensors by what they are; `weight` or `bias` is a whole new parameter.
        scaling: of its low-rank product.
        rows: of the table, that `trainable_tokens_delta` replaces.
        transposed: whether a new parameter lies as [in_features, out_features] in its file.
    """

    adapter: Adapter
    weight: float
    parts: Mapping[str, str]
    scaling: float = 1.0
    rows: Sequence[int] = ()
    transposed: bool = False

    @property
    def whole(self) -> str | None:
        """Key of the new parameter that stands in the base's place."""
        return self.parts.get("weight") or self.parts.get("bias")

    @property
    def replaces(self) -> bool:
        """Whether it brings newly trained values, and not only a copy of what the base had."""
        whole = self.whole
        return bool(self.rows) or (whole is not None and not whole.endswith(".base_layer.weight"))

    @property
    def is_product(self) -> bool:
        return any(product <= self.parts.keys() for product in PRODUCTS)

    def shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors in memory, by what they are."""
        found = {part: self.adapter.tensors[key].shape for part, key in self.parts.items()}
        return found | {"weight": found["weight"][::-1]} if self.transposed and "weight" in found else found

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors in float32, by what they are."""
        read = self.adapter.read(self.parts.values())
        found = {part: read[key] for part, key in self.parts.items()}
        return found | {"weight": found["weight"].T} if self.transposed and "weight" in found else found


@dataclass(frozen=True)
class Edits:
    """What all adapters do, by parameter.

    Attributes:
        unties: whether a tied head is no longer the embedding afterwards.
        notes: for the ledger.
    """

    by_parameter: Mapping[str, Sequence[Edit]]
    combination: str
    unties: bool = False
    notes: list[str] = field(default_factory=list)

    def of(self, parameter: str) -> Change | None:
        """What is done to a parameter, the adapters' tensors read; None when nothing is."""
        edits = self.by_parameter.get(parameter)
        return _change(edits, self.combination) if edits else None


def product(parts: Mapping[str, torch.Tensor], scaling: float) -> Delta | None:
    """The change that these tensors make, or None when they make none."""
    if "lora_A" in parts:
        return LowRank(scaling, parts["lora_B"], parts["lora_A"])
    if "lora_embedding_A" in parts:
        return LowRankTable(scaling, parts["lora_embedding_B"], parts["lora_embedding_A"])
    if "hada_w1_a" in parts:
        return Hadamard(scaling, *(parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")))
    if parts.keys() & {"lokr_w1", "lokr_w1_a"}:
        return Kronecker(scaling, *(_factor(parts, name) for name in ("lokr_w1", "lokr_w2")))
    if "lora_B.bias" in parts:
        return Shift(scaling, parts["lora_B.bias"])
    return None


def _factor(parts: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def _change(edits: Sequence[Edit], combination: str) -> Change:
    read = [(one, one.tensors()) for one in edits]
    made = [(product(parts, one.scaling), one.weight) for one, parts in read]
    deltas = [(delta, weight) for delta, weight in made if delta is not None]
    return Change(
        next((parts[name] for _, parts in read for name in ("weight", "bias") if name in parts), None),
        combine([delta for delta, _ in deltas], [weight for _, weight in deltas], combination),
        next((parts[MAGNITUDE] for _, parts in read if MAGNITUDE in parts), None),
        by_column=any("lora_embedding_A" in parts for _, parts in read),
        row_indices=next((torch.tensor(one.rows) for one, parts in read if ROWS in parts), None),
        new_rows=next((parts[ROWS] for _, parts in read if ROWS in parts), None),
    )


# ---- finding the places


def place(adapters: Sequence[Adapter], weights: Sequence[float], combination: str, architecture: Architecture) -> Edits:
    """What these adapters do to a model of this architecture.

    Raises:
        InputError: a tensor has no place in the model or another shape, is the half of something, or adapters that
            cannot be combined are.
    """
    placed: dict[str, list[Edit]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for parameter, edit in _edits(adapter, weight, architecture):
            placed.setdefault(parameter, []).append(edit)
    for parameter, edits in placed.items():
        _check_combination(parameter, edits, combination)
    return _with_ties(placed, combination, architecture)


def _edits(adapter: Adapter, weight: float, architecture: Architecture) -> Iterator[tuple[str, Edit]]:
    head = {f"{HEAD}.weight": (architecture.vocab_size, architecture.hidden_size)}
    shapes: Mapping[str, Shape] = architecture.tensor_shapes() | head
    tables = (*head, f"{architecture.embedding}.weight")
    strangers, misfits = [], []
    for module, parts in adapter.modules.items():
        for kind, chosen in _by_kind(parts).items():
            parameter = next((n for n in _spellings(f"{module}.{kind}", architecture) if n in shapes), None)
            if parameter is None:
                strangers.append(f"{module}.{kind}")
                continue
            edit = _edit(adapter, weight, module, chosen, architecture.is_transposed(parameter))
            wanted = shapes[parameter]
            found = next((shape for shape in _implied_shapes(edit, module, wanted) if shape != wanted), None)
            if found is not None:
                misfits.append((parameter, wanted, found))
            yield parameter, edit
    trained = f"It was trained on {adapter.base}." if adapter.base else None
    if strangers:
        raise InputError(f"The adapter {adapter.source} changes {_list(strangers)}, which the model lacks.", trained)
    if misfits:
        lines = [f"{name} is {_spell(wanted)} here and {_spell(found)} there" for name, wanted, found in misfits]
        resized = all(name in tables and wanted[1] == found[1] for name, wanted, found in misfits)
        hint = "Its vocabulary was extended: give the base as transformers' resize_token_embeddings left it."
        raise InputError(
            f"The adapter {adapter.source} is for a model of other shapes: {_list(lines)}.",
            hint if resized else trained,
        )


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
    indices = adapter.config.get("trainable_token_indices") or ()
    rows = indices.get(module.rpartition(".")[2], ()) if isinstance(indices, Mapping) else indices
    scaling = 1.0 if parts.keys() <= {"weight", "bias", ROWS} else adapter.scaling(module)
    return Edit(adapter, weight, parts, scaling, rows if ROWS in parts else (), transposed)


def _implied_shapes(edit: Edit, module: str, wanted: Shape) -> Iterator[Shape]:
    """The shape of the parameter that each of an edit's tensors is made for; `wanted` where a tensor leaves it open."""
    shapes, source = edit.shapes(), edit.adapter.source
    yield from (shapes[part] for part in ("weight", *BIASES) if part in shapes)
    rest = shapes.keys() - {"weight", *BIASES, MAGNITUDE, ROWS}
    if rest and rest not in PRODUCTS:
        raise InputError(f"The adapter {source} is incomplete: of {module} it has only {', '.join(sorted(rest))}.")
    if rest:
        yield _product_shape(edit, module)
        if (MAGNITUDE in shapes) != bool(edit.adapter.config.get("use_dora")):
            raise InputError(f"The adapter {source} has magnitudes for some modules only, {module} tells.")
    if MAGNITUDE in shapes:
        (length,) = shapes[MAGNITUDE]
        yield (wanted[0], length) if "lora_embedding_A" in shapes else (length, wanted[1])
    if ROWS in shapes:
        if len(edit.rows) != shapes[ROWS][0] or not all(0 <= row < wanted[0] for row in edit.rows):
            raise InputError(f"The adapter {source} has {shapes[ROWS][0]} rows of {module}, for {list(edit.rows)}.")
        yield wanted[0], shapes[ROWS][1]


def _product_shape(edit: Edit, module: str) -> Shape:
    """Of a low-rank product, found by multiplying tensors without content."""
    shapes, source = edit.shapes(), edit.adapter.source
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


def _with_ties(placed: dict[str, list[Edit]], combination: str, architecture: Architecture) -> Edits:
    """What happens to an embedding that the head shares.

    peft adds a change of either to the one tensor they share, so that both are changed, which is not what was trained.
    """
    table, head = placed.get(f"{architecture.embedding}.weight", []), placed.get(f"{HEAD}.weight", [])
    if not architecture.tied_embeddings or not (table or head):
        return Edits(placed, combination)
    if all(one.adapter.config.get("ensure_weight_tying") for one in (*table, *head)):
        kept = {name: edits for name, edits in placed.items() if name != f"{HEAD}.weight"}
        return Edits(kept, combination, notes=["the embedding and lm_head stay tied, as they were trained"])
    if not head and all(one.rows for one in table):
        return Edits(placed, combination, notes=["the new rows are those of lm_head too, which stays tied"])
    which = "the embedding and lm_head" if table and head else "the embedding only" if table else "lm_head only"
    note = f"lm_head is untied, since the adapter changes {which}"
    if any(one.is_product for one in (*table, *head)):
        note += "; peft's merge_and_unload would change the tensor they share, which is not what was trained"
    return Edits(placed, combination, unties=True, notes=[note])


def _spell(shape: Shape) -> str:
    return " × ".join(map(str, shape))


def _list(names: Sequence[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
