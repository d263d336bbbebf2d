"""Does vLLM compute from the folders made for it what their steps mean?

    python benchmarks/vllm_parity.py [TARGET ...]

Serves the demo model in vLLM's CPU build, which reads the same files as the GPU build but has fewer kernels: what it
lacks is named in the table's end. Makes an environment of its own in .venv-vllm (2.5 GB) the first time.
Writes benchmarks/results/vllm_parity.md, unless TARGETs are named. Where the processor lacks AVX512, int4 and an fp8
cache are left out and nothing is written.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peer import BENCHMARKS, Peer, Row, report, table
from safetensors.torch import load_file, save_file

from compressor.architecture import full_config
from compressor.checkpoint import Checkpoint
from compressor.comparison import limits
from compressor.decoder import Decoder
from compressor.measure.control import RoundingDecoder
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from compressor.registry import make_pass, make_target, parse_spec
from compressor.target import Rounding, Tolerance
from targets.engines.cpu_build import FP8_CACHE, missing_kernel

VLLM = Peer(".venv-vllm", "vllm_peer.py")
MODEL = BENCHMARKS.parent / "examples" / "demo" / "model"
TEXT = BENCHMARKS.parent / "examples" / "demo" / "evaluation.txt"
LENGTH = 256
BOTH = ("", ",symmetric=false")
W8A8 = "rtn:bits=8,group_size=channel,activations="
INT4 = ("vllm-int4", "gptq", "awq")
# float16, but where the CPU build aborts on it.
CASES = (
    *(("vllm-int4:dtype=float16", f"rtn:group_size={g}{s}") for g in (32, 64, 128, "channel") for s in BOTH),
    *(("gptq:dtype=float16", f"rtn:group_size={g}") for g in (32, 64, 128, "channel")),
    *(("awq:dtype=float16", f"rtn:group_size={g}{s}") for g in (32, 64, 128) for s in BOTH),
    *(("vllm-int8:dtype=bfloat16", f"{W8A8}{kind}") for kind in ("dynamic", "static")),
    ("vllm-fp8:dtype=bfloat16", "fp8"),
    ("vllm-fp8:dtype=bfloat16", "fp8:kv_cache=true"),
)
NOT_RUN = (
    "The CPU build has no kernel for gptq in int8, for fp8 weights without rounded inputs, and for static fp8 inputs "
    "under a scale a channel; it refuses gptq with zero points, as every build does. float16 aborts it on W8A8."
)


@dataclass(frozen=True)
class Apart:
    """How far log-probabilities are apart, in nats."""

    mean: float
    largest: float

    @classmethod
    def of(cls, found: torch.Tensor, wanted: torch.Tensor) -> Apart:
        apart = (found - wanted).abs()
        return cls(float(apart.mean()), float(apart.max()))

    def __str__(self) -> str:
        return f"mean {self.mean:.4f}, largest {self.largest:.4f}"


def main() -> int:
    chosen = [case for case in CASES if not sys.argv[1:] or parse_spec(case[0])[0] in sys.argv[1:]]
    lacking = {case: missing_kernel(kinds(*case)) for case in chosen}
    for case in (case for case in chosen if lacking[case]):
        print(f"{', '.join(case)} is left out: {lacking[case]}", file=sys.stderr)
    chosen = [case for case in chosen if lacking[case] is None]
    if not chosen:
        return 1
    versions = VLLM.run("versions")
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(compare(Path(scratch), chosen))
    if len(chosen) < len(CASES):
        print("\n".join(table(rows)))
        return int(not all(good for _, _, good in rows))
    return report("vllm_parity", rows, render(versions, rows))


def kinds(target: str, spec: str) -> set[str]:
    """What a case asks of vLLM's kernels, as far as its build for the CPU may lack it."""
    return {"int4"} if parse_spec(target)[0] in INT4 else {FP8_CACHE} if "kv_cache" in spec else set()


def compare(scratch: Path, cases: Sequence[tuple[str, str]]) -> Iterator[Row]:
    tokens = first_tokens()
    save_file({"tokens": tokens}, scratch / "tokens")
    folders = [scratch / str(number) for number in range(len(cases))]
    steps = [lower(folder, *case, tokens) for folder, case in zip(folders, cases, strict=True)]
    VLLM.run("logprobs", scratch / "tokens", scratch / "logprobs", *(folder / "artifact" for folder in folders))
    answers = load_file(scratch / "logprobs")["logprobs"]
    for step, answer, (target, _) in zip(steps, answers, cases, strict=True):
        name, options = parse_spec(target)
        wanted = logprobs(step, tokens)
        own = wanted.gather(1, tokens[1:, None])[:, 0]
        found = Apart.of(answer[:, 0], own)
        rounding = decoded(RoundingDecoder(step, Rounding(options["dtype"])), tokens)
        control = Apart.of(rounding.gather(1, tokens[1:, None])[:, 0], own)
        explained = limits(Tolerance(0, ""), control)
        same = int((answer[:, 1].long() == wanted.argmax(1)).sum())
        outcome = f"difference: {found}; rounding alone: {control}; most likely token equal {same} of {len(own)} times"
        scheme = next(iter(step.schemes.values()))
        what = f"`{name}`, {scheme}{', fp8 cache' if step.kv_cache else ''}, {options['dtype']}"
        yield what, outcome, found.mean <= explained["mean"] and found.largest <= explained["largest"]


def first_tokens() -> torch.Tensor:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(MODEL)(TEXT.read_text()[:2000])["input_ids"]
    return torch.tensor(ids[:LENGTH])


def lower(root: Path, target: str, spec: str, tokens: torch.Tensor) -> Checkpoint:
    """The demo model after one pass, with its artifact beside the step."""
    root.mkdir()
    context = PassContext(root / "step", {}, tokens[None], 0, quiet, [])
    step = make_pass(*parse_spec(spec)).apply(Checkpoint.open(MODEL), context)
    (root / "artifact").mkdir()
    make_target(*parse_spec(target)).lower(step, root / "artifact", quiet)
    return step


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@torch.no_grad()
def logprobs(step: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    """What the step means, in float32: [tokens - 1, vocab_size].

    By transformers on the dequantized weights; where activations or the cache are rounded, by llmc's own decoder.
    """
    if step.kv_cache or any(scheme.activations for scheme in step.schemes.values()):
        return decoded(Decoder(step), tokens)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(full_config(step.config), dtype=torch.float32).eval()
    weights = step.read(list(step.architecture.tensor_shapes()))
    dense = {name: w.dequantize() if isinstance(w, QuantizedWeight) else w.float() for name, w in weights.items()}
    model.load_state_dict(dense, strict=False)
    return model(tokens[None]).logits[0, :-1].log_softmax(-1)


@torch.no_grad()
def decoded(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """What a decoder computes: [tokens - 1, vocab_size]."""
    return decoder.logits(decoder.final_states(tokens[None])[0, :-1], decoder.head()).log_softmax(-1)


def render(versions: str, rows: list[Row]) -> Iterator[str]:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield from ("# Folders served by vLLM", "", "`python benchmarks/vllm_parity.py`", "")
    yield from (f"Peer: {versions}, on CPU. Ours: {ours}.", "", *table(rows), "")
    yield f"The demo model, rounded to nearest, is asked for the log-probability of {LENGTH - 1} tokens of a text."
    yield "What it should be is computed in float32: by transformers on the step's dequantized weights, or by llmc's"
    yield "decoder where activations or the cache are rounded too. Parity is what `llmc compare --runtimes` takes for"
    yield "it: the mean within three, the largest within eight times what the dtype's rounding does in llmc's decoder."
    yield from ("", NOT_RUN)


if __name__ == "__main__":
    sys.exit(main())
