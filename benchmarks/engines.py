"""Do the real runtimes load every artifact of a model, answer, and compute what its weights mean?

    python benchmarks/engines.py MODEL --calibration TEXT --eval TEXT [--out DIR] [--only CASE ...]

Compresses MODEL for each target, opens the artifact in every runtime that is here (`make engines`): vLLM behind its
OpenAI-compatible HTTP server, llama.cpp, onnxruntime, onnxruntime-genai and transformers. Each gets a chat message and
a few texts, on which its log-probabilities are held against llmc's decoder on the same weights. What is done is kept
in DIR and not done again. Writes benchmarks/results/engines.md and engines.json. Of what was not run here, the rows of
another machine stand that --elsewhere has, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from calibration.dataset import load_tokens
from compressor.comparison import judged
from compressor.environment import environment
from compressor.errors import LlmcError
from compressor.measure.accuracy import Reference
from compressor.measure.difference import difference
from compressor.readback import ReadBack
from compressor.registry import make_target, parse_spec
from compressor.target import Artifact, Runtime, Session
from compressor.tokenizer import load_tokenizer

RESULTS = Path(__file__).resolve().parent / "results"
QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 16
TEXTS, LENGTH = 4, 128


@dataclass(frozen=True)
class Case:
    """An artifact: what is made, by which pass."""

    name: str
    target: str
    passes: str | None

    def command(self, model: Path, out: Path, calibration: str) -> list[str]:
        words = [str(Path(sys.executable).with_name("llmc")), "compress", str(model), "-t", self.target]
        words += ["--measure", "none", "-o", str(out)]
        if self.passes is not None:
            words += ["--pass", self.passes]
            if "static" in self.passes or "kv_cache" in self.passes:
                words += ["--calibration", calibration, "--samples", "8", "--length", "128"]
        return words


W8A8 = "rtn:bits=8,group_size=channel,activations="
CASES = (
    Case("vllm-int4", "vllm-int4", "rtn:group_size=64"),
    Case("vllm-int4 asymmetric", "vllm-int4", "rtn:group_size=64,symmetric=false"),
    Case("vllm-int8 dynamic", "vllm-int8", f"{W8A8}dynamic"),
    Case("vllm-int8 static", "vllm-int8", f"{W8A8}static"),
    Case("vllm-fp8", "vllm-fp8", "fp8"),
    Case("gptq", "gptq", "rtn:group_size=64"),
    Case("awq", "awq", "rtn:group_size=64,symmetric=false"),
    Case("hf", "hf", "rtn:group_size=64"),
    Case("gguf-q4_0", "gguf-q4_0", "rtn:group_size=32"),
    Case("gguf-q8_0", "gguf-q8_0", "rtn:bits=8,group_size=32"),
    Case("onnx-int4", "onnx-int4", "rtn:group_size=64"),
    Case("onnx-int8", "onnx-int8", "rtn:bits=8,group_size=64"),
    Case("onnx-fp16", "onnx-fp16", None),
    Case("onnx-fp32", "onnx-fp32", None),
)


def main() -> int:
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "rows.json"
    elsewhere = json.loads(given.elsewhere.read_text()) if given.elsewhere else None
    rows: dict[str, list[dict[str, Any]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for case in CASES:
        if case.name in rows or (given.only and case.name not in given.only):
            continue
        print(f"{time.strftime('%H:%M:%S')} {case.name}", file=sys.stderr)
        rows[case.name] = list(run(case, given))
        kept.write_text(json.dumps(rows, indent=1))
    standing = {case.name: stand(rows.get(case.name, []), case.name, elsewhere) for case in CASES}
    ordered = {case: found for case, found in standing.items() if found}
    named = {"model": given.name or given.model.name, "remark": given.remark}
    value = {**named, "environment": environment(), "rows": ordered}
    (RESULTS / "engines.json").write_text(json.dumps(value, indent=1) + "\n")
    text = "\n".join(render(value)) + "\n"
    (RESULTS / "engines.md").write_text(text)
    print(text)
    return int(any(row["verdict"] in ("differs", "broke") for found in rows.values() for row in found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--name", help="what the table calls the model")
    parser.add_argument("--out", type=Path, default=Path("out/engines"))
    parser.add_argument("--elsewhere", type=Path, help="engines.json that another machine wrote")
    parser.add_argument("--remark", default="", help="a sentence for the results")
    parser.add_argument("--only", nargs="*")
    return parser.parse_args()


def stand(rows: list[dict[str, Any]], case: str, elsewhere: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of a case; in the place of those that were not run, what ran elsewhere, with the processor there."""
    if elsewhere is None:
        return rows
    cpu = {"cpu": elsewhere["environment"]["cpu"]}
    ran = [cpu | row for row in elsewhere["rows"].get(case, []) if row["verdict"] != "not run"]
    by_runtime = {_runtime(row): row for row in ran}
    return [by_runtime.get(_runtime(row), row) if row["verdict"] == "not run" else row for row in rows] or ran


def _runtime(row: dict[str, Any]) -> str:
    """Its name without the version."""
    return str(row["runtime"].split()[0])


def run(case: Case, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each runtime of one artifact."""
    out = given.out / case.name.replace(" ", "-")
    if not (out / "artifact").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run(case.command(given.model, out, given.calibration), check=True, capture_output=True)
    target = make_target(*parse_spec(case.target))
    artifact = Artifact(out / "artifact", target.name)
    tokenizer = load_tokenizer(given.model)
    tokens = load_tokens(given.eval, tokenizer, samples=TEXTS, length=LENGTH, seed=None).tokens
    meaning = Reference.make(ReadBack.of(target, artifact, quiet), tokens, out / "states.npy", lambda *_: None)
    for runtime in target.runtimes(artifact):
        yield row(runtime, meaning, tokenizer)
    if case.target.startswith("onnx"):
        yield genai_row(artifact.root, tokenizer)


def row(runtime: Runtime, meaning: Reference, tokenizer: Any) -> dict[str, Any]:
    """What a runtime answers, and how far it is from the reference."""
    if runtime.why_not is not None:
        return {"runtime": runtime.name, "verdict": "not run", "reason": runtime.why_not}
    start = time.perf_counter()
    try:
        with closing(runtime.open()) as session:
            ready = time.perf_counter() - start
            label = runtime.called(session.runtime)
            said = answer(session, tokenizer)
            found = difference(session, meaning, lambda *_: None)
    except LlmcError as error:
        return {"runtime": runtime.name, "verdict": "broke", "reason": str(error)}
    outcome = judged(label, runtime, found, meaning, lambda *_: None)
    explained = None if outcome.control is None else asdict(outcome.control)
    return {
        "runtime": label,
        "ready_s": ready,
        "answer": said,
        **asdict(found),
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "control": explained,
    }


def answer(session: Session, tokenizer: Any) -> str:
    """The greedy answer to the question: over the chat endpoint where the runtime has one."""
    chat = getattr(session, "chat", None)
    if chat is not None:
        return str(chat(QUESTION, ANSWER_TOKENS))
    prompt = prompt_ids(tokenizer)
    tokens = [session.prefill(torch.tensor([prompt]).numpy())]
    while len(tokens) < ANSWER_TOKENS and tokens[-1] != tokenizer.eos_token_id:
        tokens.append(session.decode(tokens[-1]))
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def prompt_ids(tokenizer: Any) -> list[int]:
    messages = [{"role": "user", "content": QUESTION}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def genai_row(root: Path, tokenizer: Any) -> dict[str, Any]:
    """The same question to onnxruntime-genai, which drives the graph itself; it tells no log-probabilities."""
    import onnxruntime_genai as genai

    start = time.perf_counter()
    model = genai.Model(str(root))
    ready = time.perf_counter() - start
    prompt = prompt_ids(tokenizer)
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + ANSWER_TOKENS, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    said = tokenizer.decode(generator.get_sequence(0)[len(prompt) :], skip_special_tokens=True)
    label = f"onnxruntime-genai {genai.__version__} CPU"
    return {"runtime": label, "ready_s": ready, "answer": said, "verdict": "answers", "reason": None}


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def render(value: dict[str, Any]) -> Iterator[str]:
    machine = value["environment"]
    yield from ("# Artifacts in their runtimes", "")
    yield from ("`python benchmarks/engines.py MODEL --calibration TEXT --eval TEXT`, after `make engines`", "")
    yield f"{value['model']}, rounded to nearest, on {machine['cpu']} with {machine['cores']} cores,"
    yield f"Python {machine['python']}, torch {machine['packages']['torch']}. Asked: “{QUESTION}”, and {TEXTS} texts of"
    yield f"{LENGTH} tokens, on which log-probabilities of the 8 likeliest tokens are held against llmc's decoder in"
    yield "float32 on the weights of the same artifact, as `llmc compare --runtimes` does; vLLM is asked over HTTP and"
    yield f"tells 100 tokens a position, so that its KL is a lower bound. {value['remark']}".strip()
    yield ""
    yield "| artifact | runtime | answer | mean apart | largest | KL | top-1 | verdict |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    rows = [(case, row) for case, found in value["rows"].items() for row in found]
    yield from (f"| `{case}` | {row['runtime']} | {' | '.join(cells(row))} |" for case, row in rows)
    yield ""
    for case, control in ((case, row["control"]) for case, row in rows if row.get("control")):
        figures = (
            f"{control['mean']:.2g} in the mean, {control['largest']:.2g} at most, KL {control['kl']['value']:.2g}"
        )
        yield f"- `{case}`: what the runtime rounds, rounded in llmc's own decoder, moves its weights' answers by"
        yield f"  {figures}: that is what the runtime is held against."
    away = [(case, row) for case, row in rows if "cpu" in row]
    yield from (f"- `{case}` in {row['runtime']} was run on another machine: {row['cpu']}." for case, row in away)
    untold = [(case, row) for case, row in rows if row["verdict"] in ("broke", "differs", "not run")]
    yield from (f"- `{case}`, {row['runtime']}: {row['reason']}" for case, row in untold)


def cells(row: dict[str, Any]) -> Iterator[str]:
    said = " ".join(row.get("answer", "").split()).replace("|", "\\|")
    yield f"“{said}”" if said else "–"
    if "kl" in row:
        yield from (f"{row['mean']:.2g}", f"{row['largest']:.2g}", f"{row['kl']['value']:.2g}")
        yield f"{100 * row['top1']['value']:.1f}%"
    else:
        yield from "––––"
    yield row["verdict"]


if __name__ == "__main__":
    sys.exit(main())
