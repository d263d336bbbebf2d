"""The layouts of compressed-tensors and, for NF4, of bitsandbytes, in which quantized weights lie between passes."""

from compressor.layout.config import check_together, quantization_config, read_schemes, reads_kv_cache
from compressor.layout.extensions import LOW_RANK_PARTS
from compressor.layout.nvfp4 import pack_e2m1
from compressor.layout.tensors import (
    SCALE,
    decode,
    encode,
    narrowed,
    plain_dtype,
    storage_format,
    stored_shapes,
    suffixes,
)
from compressor.layout.words import pack_words, unpack_words

__all__ = [
    "LOW_RANK_PARTS",
    "SCALE",
    "check_together",
    "decode",
    "encode",
    "narrowed",
    "pack_e2m1",
    "pack_words",
    "plain_dtype",
    "quantization_config",
    "read_schemes",
    "reads_kv_cache",
    "storage_format",
    "stored_shapes",
    "suffixes",
    "unpack_words",
]
