"""The resolved shape of one model: the traits of its family, and the numbers of its config.json.

Everything that walks a model (streaming, passes, ONNX lowering) reads it and never a family's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.config_rules import (
    LABELS,
    check_heads,
    check_known,
    check_padding,
    check_positive,
    check_rotary,
    check_sizes,
    why_not,
)
from compressor.errors import InputError
from compressor.families import CACHE_SCALES, HEAD, Family, Modules, Norm, family_of
from compressor.inside import check_links
from compressor.json_file import read_object


@dataclass(frozen=True)
class Architecture:
    """The shape of one decoder, resolved from its config.json. All sizes are in elements.

    Attributes:
        norm, norm_shift, gated, transposed: see `Family`.
        embedding_scale: what embeddings are multiplied by.
        score_scale: what attention scores are multiplied by.
        attention_softcap, logit_softcap: c, where scores or logits x become c tanh(x / c).
        rotary_dim: leading features of each head that are rotated; 0 where positions are learned.
        rotary_kinds: which rotary embedding each layer has: names of `rope_parameters`, or "" for the only one.
        rope_types: scaling rules of the rotary embeddings, each once.
    """

    model_type: str
    class_name: str
    modules: Modules
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm: Norm
    norm_epsilon: float
    norm_shift: float
    activation: str
    gated: bool
    transposed: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    embedding_scale: float
    score_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    rotary_dim: int
    rotary_kinds: tuple[str, ...]
    rope_types: tuple[str, ...]
    windows: tuple[int | None, ...]

    def block_linears(self, index: int) -> dict[str, tuple[int, int]]:
        """Linears of decoder block `index`: full module name to (out_features, in_features), in forward order."""
        attention, mlp = self.modules.branches
        query = self.heads * self.head_dim
        shapes = {
            **self._stacked(attention.first, self.qkv_rows),
            attention.last: (self.hidden_size, query),
            **self._stacked(mlp.first, self.mlp_rows),
            mlp.last: (self.hidden_size, self.intermediate_size),
        }
        prefix = self.modules.block(index)
        return {prefix + name: shape for name, shape in shapes.items()}

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Output features of query, key and value, which lie in this order in a linear that holds all of them."""
        key_value = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, key_value, key_value

    @property
    def mlp_rows(self) -> tuple[int, ...]:
        """Output features of what the MLP's input goes through: gate and up, or one."""
        return (self.intermediate_size,) * (2 if self.gated else 1)

    @property
    def value_part(self) -> tuple[str, int]:
        """The linear that makes values, by its name within a block, and the first of its rows that do."""
        return _part(self.modules.attention.first, self.qkv_rows, 2)

    @property
    def up_part(self) -> tuple[str, int]:
        """The same of what a gated MLP multiplies by its gate."""
        return _part(self.modules.mlp.first, self.mlp_rows, 1)

    def _stacked(self, linears: tuple[str, ...], rows: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """Shapes of linears that hold parts of so many output features, one each or one for all."""
        sizes = rows if len(linears) == len(rows) else (sum(rows),)
        return {name: (size, self.hidden_size) for name, size in zip(linears, sizes, strict=True)}

    def linears(self) -> dict[str, tuple[int, int]]:
        """Every linear of the model, `lm_head` last: module name to (out_features, in_features)."""
        found = {name: shape for index in range(self.layers) for name, shape in self.block_linears(index).items()}
        return found | {HEAD: (self.vocab_size, self.hidden_size)}

    @property
    def block_names(self) -> list[str]:
        """The units of streaming in forward order: the embedding, decoder blocks, the final norm and `lm_head`."""
        return ["embedding", *(f"layers.{index}" for index in range(self.layers)), "head"]

    @property
    def embedding(self) -> str:
        """Module name of the embedding."""
        return self.modules.embedding

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def fused_linears(self, index: int) -> Iterator[tuple[str, ...]]:
        """Groups of linears in block `index` that a runtime fuses, as full module names."""
        prefix = self.modules.block(index)
        for branch in self.modules.branches:
            if len(branch.first) > 1:
                yield tuple(prefix + name for name in branch.first)

    def cache_scales(self, index: int) -> tuple[str, ...]:
        """Names of the scales that an fp8 key-value cache has in decoder block `index`: keys, values."""
        body = self.modules.block(index) + self.modules.attention.body
        return tuple(f"{body}.{scale}" for scale in CACHE_SCALES)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter that an unquantized checkpoint of this model holds.

        Shapes are those in memory, where every linear is [out_features, in_features].
        """
        modules = self.modules
        shapes: dict[str, tuple[int, ...]] = {modules.embedding + ".weight": (self.vocab_size, self.hidden_size)}
        if modules.positions:
            shapes[modules.positions + ".weight"] = (self.max_positions, self.hidden_size)
        for index in range(self.layers):
            shapes |= self._block_shapes(index)
        shapes |= self._norm_shapes(modules.norm)
        if not self.tied_embeddings:
            shapes[HEAD + ".weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def is_transposed(self, parameter: str) -> bool:
        """Whether files have an unquantized parameter as [in_features, out_features]."""
        layer = parameter.removesuffix(".weight")
        if not self.transposed or layer == parameter or not layer.startswith(self.modules.blocks + "."):
            return False
        linears = {name for branch in self.modules.branches for name in (*branch.first, branch.last)}
        return layer.removeprefix(self.modules.blocks + ".").partition(".")[2] in linears

    def refuse_transposed(self, name: str) -> None:
        """Refuse a model whose weights are stored the other way around.

        Args:
            name: of the pass that cannot do with it.

        Raises:
            InputError: it is one.
        """
        if self.transposed:
            raise InputError(
                f"{name} writes compressed-tensors, which has no form for the Conv1D of {self.model_type} models.",
                "gptq, awq, rtn, tune, mixed, fp8 and nf4 work.",
            )

    def _norm_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        kinds = ("weight",) if self.norm == "rms" else ("weight", "bias")
        return {f"{name}.{kind}": (self.hidden_size,) for kind in kinds}

    def _block_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        prefix = self.modules.block(index)
        shapes: dict[str, tuple[int, ...]] = {}
        for norm in (norm for branch in self.modules.branches for norm in branch.norms):
            shapes |= self._norm_shapes(prefix + norm)
        if self.qk_norm:
            body = prefix + self.modules.attention.body
            shapes |= {f"{body}.{x}_norm.weight": (self.head_dim,) for x in "qk"}
        for name, shape in self.block_linears(index).items():
            shapes[name + ".weight"] = shape
            if self._has_bias(name.removeprefix(prefix)):
                shapes[name + ".bias"] = (shape[0],)
        return shapes

    def _has_bias(self, linear: str) -> bool:
        attention = self.modules.attention
        if linear in attention.first:
            return self.qkv_bias
        return self.output_bias if linear == attention.last else self.mlp_bias


def _part(linears: tuple[str, ...], rows: tuple[int, ...], place: int) -> tuple[str, int]:
    return (linears[place], 0) if len(linears) == len(rows) else (linears[0], sum(rows[:place]))


def read_config(root: Path) -> dict[str, Any]:
    """The raw config.json of a model folder.

    Raises:
        InputError: the folder has no config.json, or it is not JSON; or files of the folder lie elsewhere.
    """
    path = root / "config.json"
    if not path.is_file():
        raise InputError(f"{root} is not a model folder: it has no config.json.")
    check_links(root)
    return read_object(path)


def resolve(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes, with the defaults that transformers gives missing keys.

    Raises:
        InputError: the family is unknown, or the model is not a causal language model of that family.
    """
    family = family_of(config)
    full = full_config(config)
    _check_required(full, family)
    _check_numbers(full, family)
    check_padding(config, full.vocab_size)
    heads = full.num_attention_heads
    head_dim = getattr(full, "head_dim", None) or full.hidden_size // heads
    rotary = _rotary_parameters(full, family)
    softcaps = {key: _optional(full, key) for key in (family.attention_softcap, family.logit_softcap)}
    return Architecture(
        model_type=family.model_type,
        class_name=family.architecture,
        modules=family.modules,
        layers=full.num_hidden_layers,
        hidden_size=full.hidden_size,
        intermediate_size=getattr(full, family.intermediate_size) or 4 * full.hidden_size,
        heads=heads,
        kv_heads=getattr(full, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        vocab_size=full.vocab_size,
        max_positions=full.max_position_embeddings,
        norm=family.norm,
        norm_epsilon=getattr(full, family.norm_epsilon),
        norm_shift=family.norm_shift,
        activation=getattr(full, family.activation),
        gated=family.gated,
        transposed=family.transposed,
        qkv_bias=_trait(full, family.qkv_bias),
        output_bias=_trait(full, family.output_bias),
        mlp_bias=_trait(full, family.mlp_bias),
        qk_norm=family.qk_norm,
        tied_embeddings=bool(full.tie_word_embeddings),
        embedding_scale=full.hidden_size**0.5 if family.scaled_embedding else 1.0,
        score_scale=(getattr(full, family.score_scale) if family.score_scale else head_dim) ** -0.5,
        attention_softcap=softcaps[family.attention_softcap],
        logit_softcap=softcaps[family.logit_softcap],
        rotary_dim=_rotary_dim(rotary, head_dim),
        rotary_kinds=tuple(full.layer_types if family.rotary_by_layer_type else [""] * full.num_hidden_layers),
        rope_types=_rope_types(rotary),
        windows=_windows(full, family),
    )


def full_config(config: Mapping[str, Any]) -> Any:
    """The transformers configuration object of a config.json, quantization left out, defaults filled in.

    Raises:
        InputError: a number in it makes no sense, or transformers cannot use it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[config["model_type"]]
    check_sizes(config, kind.attribute_map)
    left_out = ("model_type", "quantization_config", *LABELS)
    try:
        return kind(**{key: value for key, value in config.items() if key not in left_out})
    except (StrictDataclassError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise why_not(error) from error


def _check_required(config: Any, family: Family) -> None:
    for key, value in family.required:
        found = getattr(config, key, None)
        if found is not None and found != value:
            raise InputError(
                f"config.json says {key}={found}; llmc takes {family.model_type} models with {key}={value}."
            )


def _check_numbers(config: Any, family: Family) -> None:
    """Refuse numbers that no model computes with; sizes were seen before."""
    named = (family.norm_epsilon, family.score_scale, family.attention_softcap, family.logit_softcap)
    window = None if family.window is None else "sliding_window"
    check_positive(**{key: getattr(config, key) for key in (*named, window) if key is not None})
    check_heads(config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    rotary = _rotary_parameters(config, family)
    for parameters in rotary.values():
        check_rotary(parameters)
    check_known(getattr(config, family.activation), _rope_types(rotary))


def _trait(config: Any, trait: bool | str) -> bool:
    return bool(getattr(config, trait)) if isinstance(trait, str) else trait


def _optional(config: Any, key: str | None) -> float | None:
    return None if key is None else getattr(config, key)


def _rotary_parameters(config: Any, family: Family) -> dict[str, Mapping[str, Any]]:
    """Parameters of each rotary embedding by the name of its kind; none where positions are learned."""
    if family.modules.positions:
        return {}
    if family.rotary_by_layer_type:
        return {kind: config.rope_parameters[kind] for kind in dict.fromkeys(config.layer_types)}
    return {"": config.rope_parameters}


def _rope_types(rotary: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    types = [one.get("rope_type", "default") for one in rotary.values()]
    odd = next((one for one in types if not isinstance(one, str)), None)
    if odd is not None:
        raise InputError(f"rope_type of config.json is {odd!r}, which is no name.")
    return tuple(dict.fromkeys(types))


def _rotary_dim(rotary: Mapping[str, Mapping[str, Any]], head_dim: int) -> int:
    widths = {int(head_dim * one.get("partial_rotary_factor", 1.0)) for one in rotary.values()}
    return max(widths, default=0)


def _windows(config: Any, family: Family) -> tuple[int | None, ...]:
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if family.window is None or window is None:
        return (None,) * layers
    if family.window == "all":
        return (window,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)
