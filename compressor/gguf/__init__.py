"""Import of GGUF files: weights, configuration and tokenizer become an ordinary model folder.

Layout of the file: ggml-org/ggml, docs/gguf.md. Names and metadata keys: ggml-org/llama.cpp, gguf-py.
"""

from compressor.gguf.importer import import_gguf

__all__ = ["import_gguf"]
