"""TensorRT-LLM: ModelOpt's unified checkpoint, its reader, and a model of TensorRT-LLM's loader."""

from targets.tensorrt_llm.rules import check_loadable
from targets.tensorrt_llm.target import TrtInt4

__all__ = ["TrtInt4", "check_loadable"]
