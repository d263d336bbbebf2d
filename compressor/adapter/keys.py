"""Names of tensors in an adapter's file: which module each one belongs to, and what it is there.

Format: huggingface/peft 0.21, `get_peft_model_state_dict`. Keys begin with `base_model.model.`, or do not when the
adapter was injected into a bare model; the adapter's own name stands behind the part, or was taken out on saving.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = r"^(?:base_model\.model\.)?"
PARTS = (
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")),
    "trainable_tokens_delta",
)
UNUSED = (
    "original_module"  # what a module that was trained whole had been: saved with a resized vocabulary, read by nobody
)
# The adapter's name is looked for last, so that `lora_A.weight` is not the lora_A of an adapter named weight.
_PART = re.compile(
    rf"{PREFIX}(?P<module>.+?)(?:\.token_adapter)?\.(?P<part>{'|'.join(PARTS)})"
    r"(?:\.(?P<name>[^.]+))??(?:\.(?P<leaf>weight|bias))?$"
)
_WHOLE = re.compile(
    rf"{PREFIX}(?P<module>.+?)(?P<original>\.original_module)?(?:\.modules_to_save(?:\.(?P<name>[^.]+))?)?"
    r"(?:\.token_adapter)?(?:\.base_layer)?\.(?P<part>weight|bias)$"
)


@dataclass(frozen=True)
class Key:
    """What a tensor is.

    Attributes:
        module: full name of the module it changes, as the model that was trained calls it.
        part: one of PARTS, `lora_B.bias`, `weight` and `bias` for a whole new parameter, or UNUSED.
        name: the adapter's name, where the key holds it.
    """

    module: str
    part: str
    name: str | None


def parse_key(key: str) -> Key | None:
    """What the tensor of this name is; None when it is nothing that is known here."""
    match = _PART.match(key)
    if match is not None:
        bias = ".bias" if match["leaf"] == "bias" else ""
        return Key(match["module"], match["part"] + bias, match["name"])
    match = _WHOLE.match(key)
    if match is None:
        return None
    return Key(match["module"], UNUSED if match["original"] else match["part"], match["name"])
