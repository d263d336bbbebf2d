"""The shape of a model as llama.cpp's metadata says it, and what of a model cannot be said there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from compressor import __version__
from compressor.architecture import Architecture, full_config
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError

RUNTIME = "llama.cpp"
# llama.cpp's name of each family. Without its sliding window a Mistral is a Llama.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ROPE_TYPES = ("default", "linear", "yarn")
FREQUENCY_FACTORS = "llama3"  # a rule that is written as a tensor, which llama.cpp looks for in llama models only
ROPE_FREQS = "rope_freqs.weight"
# What llama.cpp takes for YaRN where nothing is said, which is what transformers takes too.
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
ROPE_WRITTEN = ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")


def architecture_problems(shape: Architecture) -> list[str]:
    """Why llama.cpp would not compute what a model of this shape computes; each names a remedy."""
    name = ARCHITECTURES.get(shape.model_type)
    if name is None:
        return [f"{shape.model_type} models are not written for {RUNTIME}; the targets onnx-int4 and onnx-int8 work."]
    return [f"{reason}; the target hf works." for reason in _foreign_traits(shape, name)]


def _foreign_traits(shape: Architecture, name: str) -> Iterable[str]:
    if shape.activation != "silu":
        yield f"{RUNTIME} computes a {name} model with silu, not with {shape.activation}"
    if name != "llama" and (shape.output_bias or shape.mlp_bias):
        yield f"{RUNTIME} reads no biases of o_proj or of the MLP in a {name} model"
    if name == "qwen2" and shape.heads * shape.head_dim != shape.hidden_size:
        yield f"{RUNTIME} takes a {name} model's {shape.heads} heads for as wide as its hidden size {shape.hidden_size}"
    for kind in shape.rope_types:
        if kind not in ROPE_TYPES and (kind, name) != (FREQUENCY_FACTORS, "llama"):
            yield f"{RUNTIME} has no rope scaling of type {kind} for a {name} model"


def context_length(shape: Architecture) -> int:
    """Tokens over which llama.cpp, which gives these families no sliding window, computes the same as the model."""
    return min([shape.max_positions, *(window for window in shape.windows if window is not None)])


def add_metadata(writer: Any, checkpoint: Checkpoint, file_type: str) -> None:
    """Describe the model to a `GGUFWriter`.

    Args:
        file_type: member of gguf's LlamaFileType: what most weights are stored as.

    Raises:
        InputError: its rope scaling has parameters that cannot be said.
    """
    import gguf

    shape = checkpoint.architecture
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantized_by(f"llmc {__version__}")
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(context_length(shape))
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_rope_dimension_count(shape.head_dim)
    _add_rope(writer, full_config(checkpoint.config))


def frequency_factors(checkpoint: Checkpoint) -> torch.Tensor | None:
    """By how much llama.cpp shall divide each rotary frequency, float32 [head_dim / 2]; None where by nothing."""
    if FREQUENCY_FACTORS not in checkpoint.architecture.rope_types:
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config, width = full_config(checkpoint.config), checkpoint.architecture.head_dim
    scaled, _ = ROPE_INIT_FUNCTIONS[FREQUENCY_FACTORS](config, device="cpu")
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    return plain / scaled.float()


def _add_rope(writer: Any, config: Any) -> None:
    import gguf

    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        _check_yarn(rope)
        trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(trained)


def _check_yarn(rope: dict[str, Any]) -> None:
    """See that nothing is asked of YaRN but its defaults, the only ones that every llama.cpp computes alike."""
    defaults = YARN_DEFAULTS | {"attention_factor": 0.1 * math.log(rope["factor"]) + 1}
    for key, value in rope.items():
        if key in ROPE_WRITTEN or value is None or (key in defaults and math.isclose(value, defaults[key])):
            continue
        raise InputError(f"YaRN with {key}={value} cannot be written for {RUNTIME}.", "The target hf works.")
