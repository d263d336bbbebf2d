"""Decoder families as rows of traits, and the resolved shape of one model.

Adding a family whose differences are already named here is one row in `FAMILIES`.
Everything that walks a model (streaming, passes, ONNX lowering) reads traits and never a family's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import InputError, nearest


@dataclass(frozen=True)
class Family:
    """What sets one decoder family apart from the common pre-norm, gated-MLP, rotary shape.

    A trait that is a string names the key of config.json that decides it.
    """

    model_type: str
    architecture: str
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: str | None = None  # "all": every layer has config.sliding_window; "layer_types": the config lists them


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", "attention_bias", "attention_bias", "mlp_bias"),
        Family("mistral", "MistralForCausalLM", window="all"),
        Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True, window="layer_types"),
        Family("qwen3", "Qwen3ForCausalLM", "attention_bias", "attention_bias", qk_norm=True, window="layer_types"),
    )
}

EMBEDDING = "model.embed_tokens"

# Linears that read the same input. Runtimes fuse each group into one matrix, so a group shares one scheme.
FUSED_LINEARS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


@dataclass(frozen=True)
class Architecture:
    """The shape of one decoder, resolved from its config.json. All sizes are in elements."""

    model_type: str
    class_name: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_epsilon: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    rope_type: str
    windows: tuple[int | None, ...]

    def block_linears(self, index: int) -> dict[str, tuple[int, int]]:
        """Linears of decoder block `index`: full module name to (out_features, in_features), in forward order."""
        prefix, hidden, inner = f"model.layers.{index}.", self.hidden_size, self.intermediate_size
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        return {prefix + name: shape for name, shape in shapes.items()}

    def linears(self) -> dict[str, tuple[int, int]]:
        """Every linear of the model, `lm_head` last: module name to (out_features, in_features)."""
        found = {name: shape for index in range(self.layers) for name, shape in self.block_linears(index).items()}
        return found | {"lm_head": (self.vocab_size, self.hidden_size)}

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def fused_linears(self, index: int) -> Iterator[tuple[str, ...]]:
        """Groups of linears in block `index` that a runtime fuses, as full module names."""
        for group in FUSED_LINEARS:
            yield tuple(f"model.layers.{index}.{name}" for name in group)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter that an unquantized checkpoint of this model holds."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for index in range(self.layers):
            shapes |= self._block_shapes(index)
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _block_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        prefix = f"model.layers.{index}."
        shapes: dict[str, tuple[int, ...]] = {
            prefix + "input_layernorm.weight": (self.hidden_size,),
            prefix + "post_attention_layernorm.weight": (self.hidden_size,),
        }
        if self.qk_norm:
            shapes |= {prefix + f"self_attn.{x}_norm.weight": (self.head_dim,) for x in "qk"}
        for name, shape in self.block_linears(index).items():
            shapes[name + ".weight"] = shape
            if self._has_bias(name):
                shapes[name + ".bias"] = (shape[0],)
        return shapes

    def _has_bias(self, linear: str) -> bool:
        if linear.endswith(("q_proj", "k_proj", "v_proj")):
            return self.qkv_bias
        return self.output_bias if linear.endswith("o_proj") else self.mlp_bias


def read_config(root: Path) -> dict[str, Any]:
    """The raw config.json of a model folder.

    Raises:
        InputError: the folder has no config.json, or it is not JSON.
    """
    path = root / "config.json"
    if not path.is_file():
        raise InputError(f"{root} is not a model folder: it has no config.json.")
    try:
        config = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON (line {error.lineno}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object.")
    return config


def resolve(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes, with the defaults that transformers gives missing keys.

    Raises:
        InputError: the family is unknown, or the model is not a causal language model of that family.
    """
    family = _family(config)
    full = full_config(config)
    heads = full.num_attention_heads
    kv_heads = full.num_key_value_heads or heads
    return Architecture(
        model_type=family.model_type,
        class_name=family.architecture,
        layers=full.num_hidden_layers,
        hidden_size=full.hidden_size,
        intermediate_size=full.intermediate_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=getattr(full, "head_dim", None) or full.hidden_size // heads,
        vocab_size=full.vocab_size,
        max_positions=full.max_position_embeddings,
        norm_epsilon=full.rms_norm_eps,
        activation=full.hidden_act,
        qkv_bias=_trait(full, family.qkv_bias),
        output_bias=_trait(full, family.output_bias),
        mlp_bias=_trait(full, family.mlp_bias),
        qk_norm=family.qk_norm,
        tied_embeddings=bool(full.tie_word_embeddings),
        rope_type=full.rope_parameters.get("rope_type", "default"),
        windows=_windows(full, family),
    )


def full_config(config: Mapping[str, Any]) -> Any:
    """The transformers configuration object of a config.json, quantization left out, defaults filled in."""
    from transformers import CONFIG_MAPPING

    known = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    return CONFIG_MAPPING[config["model_type"]](**known)


def _family(config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"Unknown model family {model_type!r}; {nearest(str(model_type), FAMILIES)}",
            "Supported families: " + ", ".join(FAMILIES) + ".",
        )
    family = FAMILIES[model_type]
    classes = config.get("architectures") or [family.architecture]
    if family.architecture not in classes:
        raise InputError(f"The model is a {classes[0]}; llmc takes causal language models ({family.architecture}).")
    return family


def _trait(config: Any, trait: bool | str) -> bool:
    return bool(getattr(config, trait)) if isinstance(trait, str) else trait


def _windows(config: Any, family: Family) -> tuple[int | None, ...]:
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if family.window is None or window is None:
        return (None,) * layers
    if family.window == "all":
        return (window,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)
