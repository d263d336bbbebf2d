"""llama.cpp's C functions out of xllamacpp's shared library, under the names that llama-cpp-python gives them.

Layouts: ggml-org/llama.cpp, include/llama.h, and, for one pointer, what xllamacpp 2026.10.11549 was seen to fill in.
Another layout is told by its defaults.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from typing import Any, ClassVar

from xllamacpp import __version__, xllamacpp

GGML_TYPE_F16, GGML_TYPE_Q8_0 = 1, 8
LLAMA_FLASH_ATTN_TYPE_ENABLED = 1
Fields = list[tuple[str, Any]]


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_: ClassVar[Fields] = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class ModelParams(ctypes.Structure):
    """`llama_model_params`, of which nothing is set here."""

    _fields_: ClassVar[Fields] = [
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "progress_callback", "progress_callback_user_data")),
        ("kv_overrides", c_void_p),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc")),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    """`llama_context_params`."""

    _fields_: ClassVar[Fields] = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data", "unnamed")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


# Some of `llama_context_default_params`, at both ends of what is set here and between.
DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_seq_max": 1, "n_threads": 4, "n_threads_batch": 4,
            "rope_scaling_type": -1, "flash_attn_type": -1, "defrag_thold": -1.0, "type_k": 1, "type_v": 1,
            "offload_kqv": True, "n_samplers": 0}  # fmt: skip
_LIBRARY = ctypes.CDLL(xllamacpp.__file__)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    found = getattr(_LIBRARY, name)
    found.restype, found.argtypes = result, arguments
    return found


llama_backend_init = _function("llama_backend_init", None)
llama_model_default_params = _function("llama_model_default_params", ModelParams)
llama_model_load_from_file = _function("llama_model_load_from_file", c_void_p, c_char_p, ModelParams)
llama_model_get_vocab = _function("llama_model_get_vocab", c_void_p, c_void_p)
llama_vocab_n_tokens = _function("llama_vocab_n_tokens", c_int32, c_void_p)
llama_context_default_params = _function("llama_context_default_params", ContextParams)
llama_init_from_model = _function("llama_init_from_model", c_void_p, c_void_p, ContextParams)
llama_free = _function("llama_free", None, c_void_p)
llama_get_memory = _function("llama_get_memory", c_void_p, c_void_p)
llama_memory_clear = _function("llama_memory_clear", None, c_void_p, c_bool)
llama_batch_init = _function("llama_batch_init", Batch, c_int32, c_int32, c_int32)
llama_decode = _function("llama_decode", c_int32, c_void_p, Batch)
llama_get_logits_ith = _function("llama_get_logits_ith", POINTER(c_float), c_void_p, c_int32)

_found = llama_context_default_params()
if any(getattr(_found, name) != value for name, value in DEFAULTS.items()):
    raise SystemExit(f"Error: xllamacpp {__version__} lays llama.cpp's settings out in another way than is known here")
