"""The shape of a model as llama.cpp's metadata says it, and what of a model cannot be said there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from compressor import __version__
from compressor.architecture import Architecture, full_config, resolve
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gguf.architectures import ARCHITECTURES, GgufArchitecture
from compressor.gguf.config import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from compressor.licence import Licence
from targets.serving import SERVED_LENGTH

RUNTIME = "llama.cpp"
# llama.cpp's architecture for each family. Without its sliding window a Mistral is a Llama.
OF_FAMILY = {row.family: row for row in ARCHITECTURES.values()} | {"mistral": ARCHITECTURES["llama"]}
LLAMA3, LONGROPE = "llama3", "longrope"  # rules that are written as tensors of factors
ROPE_TYPES = ("default", "linear", "yarn")
# Tensors that llama.cpp looks for in these architectures only.
ROPE_TYPES_OF = {"llama": (*ROPE_TYPES, LLAMA3), "phi3": (*ROPE_TYPES, LONGROPE), "gemma3": ("default", "linear")}
# What llama.cpp takes for YaRN where nothing is said, which is what transformers takes too.
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
ROPE_WRITTEN = ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")


def architecture_problems(shape: Architecture) -> list[str]:
    """Why llama.cpp would not compute what a model of this shape computes; each names a remedy."""
    row = OF_FAMILY.get(shape.model_type)
    if row is None:
        return [f"{shape.model_type} models are not written for {RUNTIME}; the targets onnx-int4 and onnx-int8 work."]
    return [f"{reason}; the target hf works." for reason in _foreign_traits(shape, row)]


def _foreign_traits(shape: Architecture, row: GgufArchitecture) -> Iterable[str]:
    if shape.activation not in row.activations:
        yield f"{RUNTIME} computes a {row.name} model with {row.activations[0]}, not with {shape.activation}"
    if not row.reads_every_bias and (shape.output_bias or shape.mlp_bias):
        yield f"{RUNTIME} reads no biases of o_proj or of the MLP in a {row.name} model"
    if row.is_square and shape.heads * shape.head_dim != shape.hidden_size:
        heads = f"{shape.heads} heads for as wide as its hidden size {shape.hidden_size}"
        yield f"{RUNTIME} takes a {row.name} model's {heads}"
    if shape.rotary_dim not in (0, shape.head_dim) and not row.rotates_part:
        yield f"{RUNTIME} rotates whole heads of a {row.name} model, and not {shape.rotary_dim} features"
    if not shape.tied_embeddings and not row.unties:
        yield f"{RUNTIME} ties the head of a {row.name} model to its embedding"
    if row.always_slides and not any(shape.windows):
        yield f"{RUNTIME} takes no {row.name} model without a sliding window in some layer"
    yield from _foreign_scores(shape, row)
    for kind in shape.rope_types:
        if kind not in ROPE_TYPES_OF.get(row.name, ROPE_TYPES):
            yield f"{RUNTIME} has no rope scaling of type {kind} for a {row.name} model"


def _foreign_scores(shape: Architecture, row: GgufArchitecture) -> Iterable[str]:
    width = row.score_width(shape.layers, shape.hidden_size, shape.heads, shape.head_dim)
    if not math.isclose(shape.score_scale, width**-0.5):
        found = shape.score_scale**-2
        yield f"{RUNTIME} divides attention scores of this {row.name} model by the root of {width}, not of {found:g}"
    caps = zip(
        ("attention scores", "logits"), row.softcaps, (shape.attention_softcap, shape.logit_softcap), strict=True
    )
    for what, always, cap in caps:
        if always and cap is None:
            yield f"{RUNTIME} soft-caps the {what} of every {row.name} model"


def context_length(shape: Architecture) -> int:
    """Tokens over which llama.cpp, which applies the sliding window of few families, computes what the model does."""
    if OF_FAMILY[shape.model_type].window_period is not None:
        return shape.max_positions
    return min([shape.max_positions, *(window for window in shape.windows if window is not None)])


def served_length(config: Mapping[str, Any]) -> int:
    """Tokens to serve a model with: llama.cpp takes the long factors of a longer context for short texts too."""
    full = full_config(config)
    rope = getattr(full, "rope_parameters", None) or {}
    length = min(SERVED_LENGTH, context_length(resolve(config)))
    return min(length, rope["original_max_position_embeddings"]) if rope.get("rope_type") == LONGROPE else length


def add_metadata(writer: Any, checkpoint: Checkpoint, file_type: str) -> None:
    """Describe the model to a `GGUFWriter`.

    Args:
        file_type: member of gguf's LlamaFileType: what most weights are stored as.

    Raises:
        InputError: it has one of `rope_problems`.
    """
    import gguf

    for problem in rope_problems(checkpoint.config):
        raise InputError(problem)
    shape = checkpoint.architecture
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantized_by(f"llmc {__version__}")
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_licence(writer, Licence.of(checkpoint.root))
    writer.add_block_count(shape.layers)
    writer.add_context_length(context_length(shape))
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    add_epsilon = writer.add_layer_norm_rms_eps if shape.norm == "rms" else writer.add_layer_norm_eps
    add_epsilon(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab_size)
    if OF_FAMILY[shape.model_type].says_window:
        _add_windows(writer, shape)
    if shape.attention_softcap is not None:
        writer.add_attn_logit_softcapping(shape.attention_softcap)
    if shape.logit_softcap is not None:
        writer.add_final_logit_softcapping(shape.logit_softcap)
    if shape.rotary_dim:
        writer.add_rope_dimension_count(shape.rotary_dim)
        _add_rope(writer, full_config(checkpoint.config))


def _add_licence(writer: Any, licence: Licence) -> None:
    if licence.identifier is not None:
        writer.add_license(licence.identifier)
    if licence.name is not None:
        writer.add_license_name(licence.name)
    if licence.link is not None:
        writer.add_license_link(licence.link)


def _add_windows(writer: Any, shape: Architecture) -> None:
    """Zero is no window; and which layers have one, where not all do."""
    writer.add_sliding_window(max(window or 0 for window in shape.windows))
    if OF_FAMILY[shape.model_type].window_period is not None:
        writer.add_sliding_window_pattern([window is not None for window in shape.windows])


def rope_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """By how much llama.cpp shall divide each rotary frequency, float32 [rotary_dim / 2], by the tensor's name."""
    config, kinds = full_config(checkpoint.config), checkpoint.architecture.rope_types
    if LLAMA3 in kinds:
        return {ROPE_FREQS: _llama3_factors(config, checkpoint.architecture.head_dim)}
    if LONGROPE in kinds:
        factors = {ROPE_LONG: "long_factor", ROPE_SHORT: "short_factor"}
        return {name: torch.tensor(config.rope_parameters[key]).float() for name, key in factors.items()}
    return {}


def _llama3_factors(config: Any, width: int) -> torch.Tensor:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS[LLAMA3](config, device="cpu")
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    return plain / scaled.float()


def _add_rope(writer: Any, config: Any) -> None:
    import gguf

    rope = config.rope_parameters
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", LONGROPE):
        trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(trained)
    if kind == LONGROPE:
        writer.add_rope_scaling_attn_factors(_longrope_scale(config))


def _longrope_scale(config: Any) -> float:
    """What rotated features are multiplied by, whatever the length of the text."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return float(ROPE_INIT_FUNCTIONS[LONGROPE](config, device="cpu")[1])


def rope_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a model's rope scaling cannot be said, as sentences with a remedy; its type is known to llama.cpp."""
    rope = getattr(full_config(config), "rope_parameters", None) or {}
    if rope.get("sliding_attention", {}).get("rope_type", "default") != "default":
        yield f"{RUNTIME} scales no rotary positions of layers with a sliding window; the target hf works."
    for key, value in _unusual_yarn(rope):
        yield f"YaRN with {key}={value} cannot be written for {RUNTIME}; the target hf works."


def _unusual_yarn(rope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is asked of YaRN beside its defaults, the only ones that every llama.cpp computes alike."""
    if rope.get("rope_type") != "yarn":
        return
    defaults = YARN_DEFAULTS | {"attention_factor": 0.1 * math.log(rope["factor"]) + 1}
    for key, value in rope.items():
        is_usual = key in defaults and value is not None and math.isclose(value, defaults[key])
        if key not in ROPE_WRITTEN and value is not None and not is_usual:
            yield key, value
