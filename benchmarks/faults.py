"""Do the limits by which a runtime is judged lie between rounding and the faults that runtimes have?

    python benchmarks/faults.py [--model FOLDER] [--calibration TEXT] [--eval TEXT] [--seeds 4]

Rounds the model as artifacts are and lets llmc's decoder compute its answers: as defined; rounding as the artifact's
runtime does; the same with other last bits of every sum, as on another processor; and with a fault planted in the
weights that it reads. For each it gives the figures that limits are for: of `llmc compare --runtimes`, the mean and the
largest difference of a log-probability from what is defined; of `llmc verify`, the largest difference of a logit in the
sixteen positions of a probe from what the runtime gave before. Prints tables and writes benchmarks/results/faults.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peer import BENCHMARKS
from torch import nn

from calibration.dataset import load_tokens
from compressor.checkpoint import Block, Checkpoint
from compressor.comparison import limits
from compressor.decoder import Decoder
from compressor.environment import environment
from compressor.files import write_whole
from compressor.measure.control import RoundingDecoder
from compressor.pass_ import PassContext
from compressor.probe import TOKENS, Position
from compressor.quantized import QuantizedWeight
from compressor.registry import make_pass, parse_spec
from compressor.target import Rounding, Tolerance
from compressor.tokenizer import load_tokenizer
from targets.tolerances import BY_DTYPE, ROUNDED, ROUNDED_TO_FOUR

DEMO = BENCHMARKS.parent / "examples" / "demo"
LAST_BITS = 2.0**-21  # of a sum, relative: four bits of float32's twenty-four, as long sums in another order change
BFLOAT16, BLOCKS = Rounding("bfloat16"), Rounding(block=32)
LIKELY = 8  # log-probabilities of a position that `compare` holds against each other
W8A8 = "rtn:bits=8,group_size=channel,activations="

AS_IT_IS = "its rounding"
PASSES = {True: "passes", False: "BLAMED"}
FINDS = {True: "not found", False: "found"}

Fault = Callable[[Block], Block]


@dataclass(frozen=True)
class Case:
    """How a model is rounded, what the runtime rounds that its artifact is for, and the tolerance of that."""

    name: str
    spec: str
    tolerance: Tolerance
    rounding: Rounding = BFLOAT16


CASES = (
    Case("int4 g64, bfloat16", "rtn:group_size=64", BY_DTYPE[torch.bfloat16]),
    Case("int4 g64 asymmetric, bfloat16", "rtn:group_size=64,symmetric=false", BY_DTYPE[torch.bfloat16]),
    Case("int4 g64, float16", "rtn:group_size=64", BY_DTYPE[torch.float16], Rounding("float16")),
    Case("int4 g32, llama.cpp", "rtn:group_size=32", ROUNDED, BLOCKS),
    Case("int8 g32, llama.cpp", "rtn:bits=8,group_size=32", ROUNDED, BLOCKS),
    Case("W8A8 dynamic, bfloat16", f"{W8A8}dynamic", ROUNDED),
    Case("W8A8 static, bfloat16", f"{W8A8}static", ROUNDED),
    Case("NVFP4 with inputs, bfloat16", "nvfp4:activations=static", ROUNDED_TO_FOUR),
)


@dataclass(frozen=True)
class Figures:
    """How far answers are from the right ones, in nats.

    Attributes:
        mean: of the differences of the likeliest tokens' log-probabilities.
        largest: of them.
        probes: the largest difference of a logit that a probe keeps, of each text.
    """

    mean: float
    largest: float
    probes: tuple[float, ...]

    def within(self, limits: Mapping[str, float]) -> bool:
        """Whether `compare` agrees with it."""
        return self.mean <= limits["mean"] and self.largest <= limits["largest"]

    @classmethod
    def of(cls, found: torch.Tensor, meant: torch.Tensor, before: torch.Tensor) -> Figures:
        """Of logits [texts, length, vocab_size]: found, defined, and given by the runtime before."""
        known, ours = meant.log_softmax(-1), found.log_softmax(-1)
        values, tokens = known.topk(LIKELY)
        apart = (values - ours.gather(-1, tokens)).abs()
        probes, probe = [], slice(TOKENS - 1, 2 * TOKENS - 1)
        for right, other in zip(before[:, probe], found[:, probe], strict=True):
            pairs = zip(right.numpy(), other.numpy(), strict=True)
            probes.append(max(Position.of(row).distance(answer) for row, answer in pairs))
        return cls(float(apart.mean()), float(apart.max()), tuple(probes))


class Runtime(RoundingDecoder):
    """A decoder that computes as a runtime does.

    Attributes:
        generator: where other last bits of sums come from, of another processor; None leaves them.
        fault: in what it reads.
    """

    generator: torch.Generator | None = None
    fault: Fault | None = None

    def layer(self, block: Block, products: torch.dtype = torch.float32) -> nn.Module:
        layer = super().layer(block if self.fault is None else self.fault(block), products)
        for module in layer.modules():
            if isinstance(module, nn.Linear) and self.generator is not None:
                # Before the output is rounded, which is a hook too.
                module.register_forward_hook(lambda module, inputs, output: self._changed(output), prepend=True)
        return layer

    def _changed(self, values: torch.Tensor) -> torch.Tensor:
        return values * (1 + LAST_BITS * torch.randn(values.shape, generator=self.generator))


def every(change: Callable[[QuantizedWeight], QuantizedWeight]) -> Fault:
    """A fault of every linear."""

    def fault(block: Block) -> Block:
        return block.with_weights({name: change(weight) for name, weight in linears(block).items()})

    return fault


def one(change: Callable[[QuantizedWeight], QuantizedWeight], layer: str, index: int) -> Fault:
    """A fault of one linear of one decoder block, whose name has `layer` in it."""

    def fault(block: Block) -> Block:
        if block.index != index:
            return block
        name = next(name for name in linears(block) if layer in name)
        return block.with_weights({name: change(block.weights[name])})

    return fault


def linears(block: Block) -> dict[str, QuantizedWeight]:
    return {name: weight for name, weight in block.weights.items() if isinstance(weight, QuantizedWeight)}


def larger_scales(weight: QuantizedWeight) -> QuantizedWeight:
    """Scales of another convention: the largest code is 8 and not 7, or 128 and not 127 ..."""
    return replace(weight, scales=weight.scales * (weight.scheme.highest + 1) / max(1, weight.scheme.highest))


def groups_off_by_one(weight: QuantizedWeight) -> QuantizedWeight:
    """Each group under the scale of its neighbour."""
    return replace(weight, scales=weight.scales.roll(1, 1 if weight.scales.shape[1] > 1 else 0))


def shifted_codes(weight: QuantizedWeight) -> QuantizedWeight:
    """A zero point that is one too low, as where one format stores it less by one and another does not."""
    codes = weight.codes
    return replace(weight, codes=(codes + 1).clamp(max=weight.scheme.highest).to(codes.dtype))


def pairs_exchanged(weight: QuantizedWeight) -> QuantizedWeight:
    """The low and the high half of each byte, one for the other."""
    rows, columns = weight.codes.shape
    return replace(weight, codes=weight.codes.view(rows, columns // 2, 2)[..., [1, 0]].reshape(rows, columns))


def doubled_inputs(weight: QuantizedWeight) -> QuantizedWeight:
    """A static scale of inputs that is twice what it should be."""
    assert weight.input_scale is not None
    return replace(weight, input_scale=weight.input_scale * 2)


def exchanged(block: Block) -> Block:
    """Gate and up projection of every block, one for the other."""
    gate, up = (next(name for name in block.weights if part in name) for part in ("gate_proj", "up_proj"))
    return block.with_weights({gate: block.weights[up], up: block.weights[gate]})


def faults(checkpoint: Checkpoint) -> dict[str, Fault]:
    """Those that weights of these schemes can have."""
    schemes = set(checkpoint.schemes.values())
    middle = checkpoint.architecture.layers // 2
    found: dict[str, Fault] = {"gate and up exchanged": exchanged}
    scheme = next(iter(schemes))
    if scheme.type == "int":
        found |= {
            "zero point off by one": every(shifted_codes),
            "zero point off by one, one layer": one(shifted_codes, "o_proj", middle),
        }
    if scheme.kind == "int4":
        found |= {
            "scales of eighths": every(larger_scales),
            "scales of eighths, one layer": one(larger_scales, "o_proj", middle),
        }
    if scheme.bits == 4:
        found["halves of a byte exchanged"] = every(pairs_exchanged)
    found["scale of the neighbour"] = every(groups_off_by_one)
    found["scale of the neighbour, one layer"] = one(groups_off_by_one, "o_proj", middle)
    if scheme.activations is not None and not scheme.activations.dynamic:
        found["scale of inputs doubled"] = every(doubled_inputs)
    return found


def main() -> int:
    given = arguments()
    tokenizer = load_tokenizer(given.model)
    texts = {
        "calibration": load_tokens(given.calibration, tokenizer, samples=4, length=64, seed=0).tokens,
        "judged": load_tokens(given.eval, tokenizer, samples=given.texts, length=given.length, seed=None).tokens,
    }
    tables = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(CASES):
            if given.only and not any(word in case.name for word in given.only):
                continue
            print(case.name, file=sys.stderr, flush=True)
            tables.append("\n".join(table(case, *measured(case, given, texts, Path(scratch) / str(number)))))
            write_whole(given.results, document(tables, given))  # what is done is kept
    text = document(tables, given)
    print(text)
    return int(PASSES[False] in text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO / "model")
    parser.add_argument("--name", default="the demo model", help="what the document calls the model")
    parser.add_argument("--calibration", default=str(DEMO / "calibration.txt"))
    parser.add_argument("--eval", default=str(DEMO / "evaluation.txt"))
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "faults.md")
    return parser.parse_args()


def measured(
    case: Case, given: argparse.Namespace, texts: Mapping[str, torch.Tensor], out: Path
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    """What is right and what is faulty, by name."""
    context = PassContext(out, {}, texts["calibration"], 0, lambda *_: None, [])
    step = make_pass(*parse_spec(case.spec)).apply(Checkpoint.open(given.model), context)
    meant = logits(Decoder(step), texts["judged"])
    before = logits(Runtime(step, case.rounding), texts["judged"])

    def figures(seed: int | None = None, fault: Fault | None = None) -> Figures:
        runtime = Runtime(step, case.rounding)
        runtime.generator = None if seed is None else torch.Generator().manual_seed(seed)
        runtime.fault = fault
        return Figures.of(logits(runtime, texts["judged"]), meant, before)

    right = {AS_IT_IS: Figures.of(before, meant, before)}
    right |= {f"other last bits, {seed}": figures(seed) for seed in range(given.seeds)}
    return right, {name: figures(fault=fault) for name, fault in faults(step).items()}


def logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    return decoder.logits(decoder.final_states(tokens), decoder.head())


def table(case: Case, right: Mapping[str, Figures], wrong: Mapping[str, Figures]) -> Iterator[str]:
    """One case: what is right and what is faulty beside the limits, which must let through and must find it."""
    known = limits(case.tolerance, right[AS_IT_IS])
    yield f"### {case.name}: {case.rounding}"
    yield ""
    yield "| | mean | largest | probe | compare | verify |"
    yield "|---|---:|---:|---:|---|---|"
    for name, found in right.items():
        compared, probed = found.within(known), max(found.probes) <= case.tolerance.logits
        yield f"| {name} | {_cells(found, max)} | {PASSES[compared]} | {PASSES[probed]} |"
    for name, found in wrong.items():
        compared, probed = found.within(known), min(found.probes) <= case.tolerance.logits
        yield f"| **{name}** | {_cells(found, min)} | {FINDS[compared]} | {FINDS[probed]} |"
    yield f"| limit | {known['mean']:.2g} | {known['largest']:.2g} | {case.tolerance.logits:.2g} | | |"


def _cells(found: Figures, judged: Callable[[Sequence[float]], float]) -> str:
    return f"{found.mean:.2g} | {found.largest:.2g} | {judged(found.probes):.2g}"


def document(tables: Sequence[str], given: argparse.Namespace) -> str:
    """The document of the results."""
    facts, shape = environment(), Checkpoint.open(given.model).architecture
    parts = [
        "# Rounding, and faults of a runtime",
        "`python benchmarks/faults.py`",
        f"{facts['cpu']}, torch {facts['packages']['torch']}. {given.name}, {shape.layers} layers of width "
        f"{shape.hidden_size}, rounded to nearest; {given.texts} texts of {given.length} tokens. In nats: the mean and "
        "the largest difference of the eight likeliest log-probabilities, which `compare --runtimes` judges by, and "
        "the largest difference of a logit in a probe from before, which `verify` does; of the texts the worst of what "
        "is right and the least of what is faulty. Faults are in bold, and of every layer unless they say one.",
        *tables,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
