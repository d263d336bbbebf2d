"""TensorRT-LLM: ModelOpt's unified checkpoints, their reader, and a model of TensorRT-LLM's loader."""

from targets.tensorrt_llm.rules import check_loadable
from targets.tensorrt_llm.target import TrtFp8, TrtInt4, TrtInt8, TrtNvfp4

__all__ = ["TrtFp8", "TrtInt4", "TrtInt8", "TrtNvfp4", "check_loadable"]
