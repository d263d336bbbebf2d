"""llama.cpp: one GGUF file with weights, metadata and tokenizer, and its reader.

Layout of the file: ggml-org/ggml, docs/gguf.md. What llama.cpp wants in it: ggml-org/llama.cpp, src/models and
src/llama-vocab.cpp.
"""

from targets.gguf.target import GgufQ4, GgufQ8

__all__ = ["GgufQ4", "GgufQ8"]
