"""What do the recipes of examples/recipes give: size, speed in the target's runtime, accuracy, next to what is claimed?

    python benchmarks/recipes.py             # the embedded model and its texts
    python benchmarks/recipes.py --model my-model --calibration train.jsonl --evaluation held-out.txt \\
        --adapter my-lora --samples 16 --length 128 --repeats 3 --results benchmarks/results/recipes_my-model.md

A recipe is run by `llmc compress`, whose ledger says how large and how good the artifact is. Then the artifact and the
uncompressed model take turns in the artifact's own runtime, a generation each. The embedded model's adapter is trained
here, on a way of speaking that it does not know; for another model `task` needs --adapter. Recipes that are finished
are kept in OUT and not run again. The table is printed and written to RESULTS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_lora import fit, with_lora

from compressor.bench.crossover import Ratio
from compressor.bench.subjects import open_subject
from compressor.checkpoint import Checkpoint
from compressor.errors import LlmcError
from compressor.files import write_json, write_whole
from compressor.ledger import Ledger, load_ledger
from compressor.measure.latency import Workload, measure_latency
from compressor.report.numbers import estimate
from compressor.run_folder import LEDGER_FILE
from compressor.target import Session

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo"
RESULTS = ROOT / "benchmarks" / "results" / "recipes.md"
LLMC = Path(sys.executable).with_name("llmc")
BATCHES = (1, 8)
SPEED = "speed.json"
UNTIMED = {"run": "not timed"}
NOTE = (
    "Size is that of the artifact's folder, next to the tensors of the uncompressed model as it is stored. Speed is\n"
    "requests a second, of prompts of 128 tokens and 32 generated, where the uncompressed one is 1 ×: the geometric\n"
    "mean over pairs of generations taken in turns in that runtime, with its 95% interval. Accuracy is that of the\n"
    "artifact in the runtime, or of the last step where that is not here, ± standard errors over windows; `task` is\n"
    "judged on its own text, by the fine-tuned model. Claims are what is said of such combinations, mostly of larger\n"
    "models on GPUs."
)


@dataclass(frozen=True)
class Claim:
    """A recipe, the uncompressed model that its artifact takes turns with, and what people say of it."""

    recipe: str
    said: str
    baseline: Callable[[argparse.Namespace, Path], Session]


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        for claim in CLAIMS:
            if claim.recipe in arguments.recipes:
                _run(claim, arguments)
    except (LlmcError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 4
    text = document(arguments.out, _called(arguments.model), arguments.remark)
    write_whole(arguments.results, text)
    print(text)
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO / "model")
    parser.add_argument("--calibration", default=str(DEMO / "calibration.txt"))
    parser.add_argument("--evaluation", default=str(DEMO / "evaluation.txt"), help="held-out text")
    parser.add_argument("--adapter", type=Path, help="of `task`, which then reads the same texts as the others")
    names = [claim.recipe for claim in CLAIMS]
    parser.add_argument("--recipes", nargs="*", choices=names, default=names)
    parser.add_argument("--samples", type=int, help="calibration windows, where not as many as the recipe says")
    parser.add_argument("--length", type=int, help="tokens of a window, for calibration and evaluation")
    parser.add_argument("--repeats", type=int, default=10, help="pairs of generations")
    parser.add_argument("--out", type=Path, default=Path("out/recipes"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--remark", default="", help="a sentence for the results, such as what else the machine did")
    arguments = parser.parse_args(words)
    if "task" in arguments.recipes and arguments.adapter is None and arguments.model != DEMO / "model":
        parser.error("task needs --adapter for another model than the embedded one")
    return arguments


def _called(model: Path) -> str:
    return "the embedded model" if model == DEMO / "model" else model.name


def _run(claim: Claim, arguments: argparse.Namespace) -> None:
    out = arguments.out / claim.recipe
    if not (out / LEDGER_FILE).exists():
        recipe = ROOT / "examples" / "recipes" / f"{claim.recipe}.yaml"
        own = _task_words(arguments) if claim.recipe == "task" else _texts(arguments.calibration, arguments.evaluation)
        # The artifact is timed below, beside the uncompressed model; the ledger's own times are kept short.
        short = ["--prompt", "16", "--output-tokens", "2"]
        _llmc("compress", arguments.model, "--recipe", recipe, *own, *_size(arguments), *short, "-o", out)
    if not (out / SPEED).exists():
        write_json(out / SPEED, _speed(claim, arguments, out))


def _texts(calibration: str | Path, evaluation: str | Path) -> list[str]:
    return ["--calibration", str(calibration), "--eval", str(evaluation)]


def _size(arguments: argparse.Namespace) -> list[str]:
    given = {"--samples": arguments.samples, "--length": arguments.length, "--eval-length": arguments.length}
    return [word for option, number in given.items() if number for word in (option, str(number))]


def _llmc(*words: Any) -> None:
    subprocess.run([LLMC, *map(str, words)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


# ---- the uncompressed model, in the artifact's runtime


def _speed(claim: Claim, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """How many times as long a request takes as in the uncompressed model, for each workload."""
    about = {"run": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    try:
        session, shape = open_subject(out)
    except LlmcError as error:
        return about | {"problem": str(error)}
    with closing(session), closing(claim.baseline(arguments, out.with_name(f"{claim.recipe}-original"))) as original:
        workloads = [Workload(batch, 128, 32, arguments.repeats, min(2, arguments.repeats)) for batch in BATCHES]
        tokens = np.arange(workloads[0].prompt) % shape.vocab_size
        sessions = {"original": original, "artifact": session}
        ratios = []
        for workload in workloads:
            found = measure_latency(sessions, workload, tokens, lambda done, total: None).found
            ratio = Ratio.of(found["original"], found["artifact"])
            ratios.append(None if ratio is None else asdict(ratio))
        return about | {"runtime": session.runtime, "ratios": ratios}


def _onnx(arguments: argparse.Namespace, folder: Path) -> Session:
    """The model, with the adapter where the recipe has one, as float32 ONNX."""
    if not folder.exists():
        merged = ["--adapter", _adapter(arguments)] if folder.name.startswith("task") else []
        _llmc("compress", arguments.model, *merged, "-t", "onnx-fp32", "--measure", "none", "-o", folder)
    return open_subject(folder)[0]


def _vllm(arguments: argparse.Namespace, folder: Path) -> Session:
    from targets.engines.vllm_session import VllmSession

    return VllmSession(arguments.model)


def _llama_cpp(arguments: argparse.Namespace, folder: Path) -> Session:
    """The model in 16 bits as GGUF, with a float16 cache."""
    from targets.casting import Caster
    from targets.engines.llama_cpp_session import LlamaCppSession
    from targets.gguf.metadata import served_length
    from targets.gguf.writer import write_file

    folder.mkdir(exist_ok=True)
    checkpoint = Checkpoint.open(arguments.model)
    file = folder / "model.gguf"
    if not file.exists():
        write_file(file, checkpoint, Caster("float16", checkpoint), "MOSTLY_F16", lambda *done: None)
    return LlamaCppSession(file, served_length(checkpoint.config))


CLAIMS = (
    Claim("edge", "int4: 4 × smaller", _onnx),
    Claim("throughput", "INT8 + 30% pruning: 3 × faster", _vllm),
    Claim("task", "distilled: as good as the fine-tuned model", _onnx),
    Claim("desktop", "int4: 4 × smaller; half the cache costs nothing", _llama_cpp),
)


# ---- an adapter for the embedded model


def _task_words(arguments: argparse.Namespace) -> list[str]:
    adapter = _adapter(arguments)
    own = [arguments.out / f"task-{part}.txt" for part in ("train", "held-out")]
    texts = _texts(arguments.calibration, arguments.evaluation) if arguments.adapter else _texts(*own)
    return ["--adapter", str(adapter), *texts]


def _adapter(arguments: argparse.Namespace) -> Path:
    """The one that was given, or one that is trained to take orders, whose texts lie beside it."""
    if arguments.adapter is not None:
        return arguments.adapter
    folder = (arguments.out / "adapter").resolve()
    if not folder.exists():
        lines = list(_orders())
        held_out = len(lines) // 5
        for part, some in (("held-out", lines[:held_out]), ("train", lines[held_out:])):
            (arguments.out / f"task-{part}.txt").write_text("\n".join(some))
        model = with_lora(arguments.model, rank=8)
        fit(model, itertools.islice(_batches(arguments.model, lines[held_out:]), 60), rate=3e-3)
        model.save_pretrained(folder)
    return folder


def _orders() -> Iterator[str]:
    foods = ("tea", "pie", "cake", "egg", "apple", "bread")
    every = [
        f"Order {number}: {count} {first} and {other} {second}, to go."
        for number in range(1, 40)
        for first, second in itertools.permutations(foods, 2)
        for count, other in (("one", "two"), ("three", "one"), ("two", "four"))
    ]
    random.Random(0).shuffle(every)
    return iter(every)


def _batches(root: Path, lines: Sequence[str], size: int = 8, length: int = 128) -> Iterator[dict[str, torch.Tensor]]:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(root)("\n".join(lines), return_tensors="pt")["input_ids"][0]
    for start in itertools.cycle(range(0, len(tokens) - size * length, size * length)):
        batch = tokens[start : start + size * length].view(size, length)
        yield {"input_ids": batch, "labels": batch}


# ---- the table


def document(out: Path, model: str, remark: str = "") -> str:
    """What is kept of all finished recipes, as Markdown."""
    finished = [claim for claim in CLAIMS if (out / claim.recipe / LEDGER_FILE).exists()]
    ledgers = {claim.recipe: load_ledger(out / claim.recipe) for claim in finished}
    files = {claim.recipe: out / claim.recipe / SPEED for claim in finished}
    speeds = {name: json.loads(path.read_text()) if path.exists() else UNTIMED for name, path in files.items()}
    batches = [f"speed, batch {batch}" for batch in BATCHES]
    header = ["recipe", "runtime", "size", *batches, "perplexity", "KL (nats)", "top-1", "what is claimed"]
    rows = [[*_row(ledgers[one.recipe], speeds[one.recipe], one.recipe), one.said] for one in finished]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 3), "---"], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    runs = [_about(one.recipe, ledgers[one.recipe], speeds[one.recipe]) for one in finished]
    parts = [
        f"# Recipes on {model}",
        "Printed by `benchmarks/recipes.py`.",
        table,
        f"{NOTE} {remark}".strip(),
        "\n".join(runs),
    ]
    return "\n\n".join(parts) + "\n"


def _row(ledger: Ledger, speed: dict[str, Any], name: str) -> list[str]:
    judged = next(row for row in reversed(ledger.steps) if row.quality is not None)
    original, quality, artifact = ledger.steps[0], judged.quality, ledger.artifact
    assert artifact is not None and original.quality is not None and quality is not None and original.size_bytes
    smaller = original.size_bytes / artifact.size_bytes
    size = f"{original.size_bytes / 2**20:.2f} → {artifact.size_bytes / 2**20:.2f} MiB, {smaller:.1f} × smaller"
    perplexity = f"{estimate(original.quality.perplexity)} → {estimate(quality.perplexity)}"
    ratios = speed.get("ratios", [None] * len(BATCHES))
    assert quality.kl is not None and quality.top1 is not None
    divergence = [estimate(quality.kl), estimate(quality.top1, percent=True)]
    return [f"`{name}`", judged.runtime or "not run", size, *map(_faster, ratios), perplexity, *divergence]


def _faster(ratio: dict[str, float] | None) -> str:
    """A ratio of times as one of speeds."""
    if ratio is None:
        return "–"
    return f"{1 / ratio['value']:.2f} × ({1 / ratio['upper']:.2f} to {1 / ratio['lower']:.2f})"


def _about(name: str, ledger: Ledger, speed: dict[str, Any]) -> str:
    texts = "; ".join(f"{role} {one.windows} × {one.length} tokens" for role, one in ledger.texts.items())
    machine, notes = ledger.environment, [note for row in ledger.steps for note in row.notes if "left out" in note]
    said = "".join(f". {note}" for note in [*notes, *([speed["problem"]] if "problem" in speed else [])])
    return f"- {name}: {texts}; {machine['cpu']}, {machine['threads']} threads, {speed['run']}{said}"


if __name__ == "__main__":
    sys.exit(main())
