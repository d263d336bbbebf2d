"""What a decoder graph takes and gives, under the names that optimum and onnxruntime-genai know."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from compressor.architecture import Architecture
from targets.onnx.nodes import ONNX_TYPES

GROUP_SIZE = "group_size"  # node metadata: the group size before scales were repeated over smaller blocks
LAST_TOKEN = "last_token"  # name of the node that keeps one position of each row
# onnxruntime's int8 products saturate at 16 bits on x64 CPUs without VNNI. With this it computes in uint8 there, for
# which it wants zero points. onnxruntime, onnxruntime_session_options_config_keys.h.
EXACT_PRODUCTS = {"session.x64quantprecision": "1"}


def session_entries(graph: GraphProto) -> dict[str, str]:
    """Settings of a session in which onnxruntime computes what the graph says."""
    return EXACT_PRODUCTS if any(node.op_type == "QuantizeLinear" for node in graph.node) else {}


def inputs(architecture: Architecture, compute: torch.dtype) -> list[ValueInfoProto]:
    """Tokens [batch, current], their mask [batch, total], and keys and values of those before."""
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "current"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
    return [tokens, mask, *_cache(architecture, compute, "past_key_values", "past")]


def outputs(architecture: Architecture, compute: torch.dtype) -> list[ValueInfoProto]:
    """Logits [batch, 1, vocab_size] of the last token, and all keys and values."""
    logits = helper.make_tensor_value_info("logits", ONNX_TYPES[compute], ["batch", 1, architecture.vocab_size])
    return [logits, *_cache(architecture, compute, "present", "total")]


def _cache(architecture: Architecture, compute: torch.dtype, name: str, length: str) -> Iterator[ValueInfoProto]:
    """Keys and values [batch, kv_heads, length, head_dim] of every layer."""
    shape = ("batch", architecture.kv_heads, length, architecture.head_dim)
    for index in range(architecture.layers):
        for part in ("key", "value"):
            yield helper.make_tensor_value_info(f"{name}.{index}.{part}", ONNX_TYPES[compute], shape)
