"""What people mean by words of other tools. Words that are spelled like one of ours need no entry."""

from __future__ import annotations

GGUF, ONNX, TRT, VLLM = ("gguf-q4_0", "gguf-q8_0"), ("onnx-int4", "onnx-int8"), ("trt-int4", "trt-fp8"), ("vllm-int4",)

VERBS = {
    **dict.fromkeys(("quantize", "quantise", "quant", "convert", "export", "compile", "prune", "merge"), ("compress",)),
    **dict.fromkeys(("show", "info", "describe", "stat"), ("inspect", "report")),
    **dict.fromkeys(("check", "validate"), ("verify", "audit", "gate")),
    **dict.fromkeys(("eval", "evaluate"), ("score", "lm-eval")),
    **dict.fromkeys(("benchmark", "time", "profile", "perf"), ("bench",)),
    **dict.fromkeys(("judge", "test", "ci"), ("gate",)),
    **dict.fromkeys(("mlflow", "wandb", "log"), ("track",)),
    **dict.fromkeys(("env", "version", "health"), ("doctor",)),
    **dict.fromkeys(("blame", "debug", "diagnose"), ("bisect",)),
    **dict.fromkeys(("new", "recipe", "config"), ("init",)),
    "diff": ("compare",),
    "list": ("passes", "targets"),
}
PASSES = {
    **dict.fromkeys(("quantize", "quant", "int4", "int8", "w4a16"), ("gptq", "rtn", "awq")),
    **dict.fromkeys(("prune", "sparse", "sparsity"), ("wanda", "sparsegpt", "prune-depth", "prune-width")),
    **dict.fromkeys(("lora", "merge", "peft", "adapter"), ("lora-merge",)),
    **dict.fromkeys(("svd", "lowrank", "asvd"), ("low-rank",)),
    **dict.fromkeys(("quarot", "spinquant", "hadamard"), ("rotate",)),
    **dict.fromkeys(("bnb", "bitsandbytes", "qlora"), ("nf4",)),
    **dict.fromkeys(("autoround", "auto-round", "signround"), ("tune",)),
    **dict.fromkeys(("kd", "student", "finetune"), ("distill",)),
    **dict.fromkeys(("llm-compressor", "compressed-tensors"), ("llmcompressor",)),
}
TARGETS = {
    **dict.fromkeys(("tensorrt", "tensorrt-llm", "trtllm", "nvidia"), TRT),
    **dict.fromkeys(("tensorrt-rtx", "rtx"), ("trtrtx-int4", "trtrtx-int8")),
    **dict.fromkeys(("llama.cpp", "llamacpp", "llama-cpp", "ollama", "ggml"), GGUF),
    **dict.fromkeys(("ort", "onnxruntime", "genai"), ONNX),
    **dict.fromkeys(("sglang", "compressed-tensors"), VLLM),
    **dict.fromkeys(("huggingface", "transformers", "safetensors"), ("hf",)),
    **dict.fromkeys(("bnb", "bitsandbytes", "nf4"), ("hf-nf4",)),
}
