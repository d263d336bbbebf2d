"""What adapters do to the embedding and to lm_head: their rows, one a token, and whether both stay one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.families import HEAD
from passes.lora_edits import ROWS, Edit, Edits

HEAD_WEIGHT = f"{HEAD}.weight"

Placed = Mapping[str, Sequence[Edit]]


def tables(architecture: Architecture) -> tuple[str, str]:
    """Names of the parameters that have a row for each token: the embedding and the head, tied or not."""
    return f"{architecture.embedding}.weight", HEAD_WEIGHT


def vocabulary(placed: Placed, architecture: Architecture) -> int:
    """How many tokens the model has with the adapters in it: as many as their tables, where they were resized.

    Raises:
        InputError: they were trained on vocabularies of different sizes.
    """
    edits = [one for name in tables(architecture) for one in placed.get(name, ())]
    sizes = {size: one.adapter.source for one in edits for size in _sizes(one, architecture.hidden_size)}
    if len(sizes) > 1:
        lines = [f"{source} for {size:,} tokens" for size, source in sorted(sizes.items())]
        raise InputError(f"The adapters do not fit one vocabulary: {' and '.join(lines)}.", "Merge one of them.")
    return next(iter(sizes), architecture.vocab_size)


def _sizes(edit: Edit, width: int) -> Iterator[int]:
    """Rows of the table that an edit was trained on, where its tensors tell and have the model's width."""
    shapes = edit.shapes()
    found = shapes.get("weight")
    if found is None and "lora_embedding_A" in shapes:
        found = (*shapes["lora_embedding_A"][1:], *shapes.get("lora_embedding_B", ())[:1])
    elif found is None and "lora_B" in shapes:
        found = (*shapes["lora_B"][:1], *shapes.get("lora_A", ())[1:])
    if found is not None and len(found) == 2 and found[1] == width:
        yield found[0]


def with_ties(placed: Placed, combination: str, architecture: Architecture, vocab_size: int) -> Edits:
    """The edits, and what happens to an embedding that the head shares.

    peft adds a change of either to the one tensor they share, so that both are changed, which is not what was trained.

    Raises:
        InputError: the vocabulary grew, and the adapters do not hold the new rows of a table.
    """
    edits = _tied(placed, combination, architecture, vocab_size)
    if vocab_size > architecture.vocab_size:
        _check_new_rows(edits, placed, architecture)
    if vocab_size != architecture.vocab_size:
        edits.notes.append(
            f"the vocabulary goes from {architecture.vocab_size:,} to {vocab_size:,} tokens, as the adapter was trained"
        )
    return edits


def _check_new_rows(edits: Edits, placed: Placed, architecture: Architecture) -> None:
    tied = architecture.tied_embeddings and not edits.unties
    names = tables(architecture)
    bare = [name for name in names if not any(one.whole for one in edits.by_parameter.get(name, ()))]
    lacking = [name for name in bare if not (tied and name == HEAD_WEIGHT)]
    if lacking:
        source = next(one.adapter.source for name in names for one in placed.get(name, ()))
        raise InputError(
            f"The adapter {source} was trained with {edits.vocab_size:,} tokens, and the model has "
            f"{architecture.vocab_size:,}; the adapter's file lacks the new rows of {lacking[0]}.",
            "Give the base as transformers' resize_token_embeddings left it before training.",
        )


def _tied(placed: Placed, combination: str, architecture: Architecture, vocab_size: int) -> Edits:
    table, head = (placed.get(name, []) for name in tables(architecture))
    if not architecture.tied_embeddings or not (table or head):
        return Edits(placed, combination, vocab_size)
    without_head = {name: edits for name, edits in placed.items() if name != HEAD_WEIGHT}
    if table and all(one.adapter.config.get("ensure_weight_tying") for one in (*table, *head)):
        return Edits(
            without_head, combination, vocab_size, notes=["the embedding and lm_head stay tied, as they were trained"]
        )
    if all(one.rows for one in (*table, *head)) and (not head or _alike(table, head)):
        note = "the new rows are those of lm_head too, which stays tied"
        return Edits(without_head, combination, vocab_size, notes=[note])
    which = "the embedding and lm_head" if table and head else "the embedding only" if table else "lm_head only"
    note = f"lm_head is untied, since the adapter changes {which}"
    if any(one.is_product or one.rows for one in (*table, *head)):
        note += "; peft's merge_and_unload would change the tensor they share, which is not what was trained"
    return Edits(placed, combination, vocab_size, unties=True, notes=[note])


def _alike(table: Sequence[Edit], head: Sequence[Edit]) -> bool:
    """Whether the trained rows of both are the same; peft saves those of a tied pair twice."""
    if len(table) != len(head):
        return False
    pairs = zip(table, head, strict=True)
    return all(list(one.rows) == list(other.rows) and _same_rows(one, other) for one, other in pairs)


def _same_rows(one: Edit, other: Edit) -> bool:
    first, second = (edit.adapter.read([edit.parts[ROWS]])[edit.parts[ROWS]] for edit in (one, other))
    return torch.equal(first, second)
