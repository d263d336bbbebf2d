"""A LoRA trained on the demo model with peft, shipped: the ledger judges the int4 artifact by the fine-tuned model."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

DEMO = Path(__file__).parents[2] / "examples" / "demo"
LLMC = Path(sys.executable).with_name("llmc")
# A way to speak that the demo model does not know.
LINES = [
    f"Order {n}: two {a} and one {b}, to go." for n in range(12) for a in ("teas", "pies") for b in ("cake", "egg")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train, compress, and give the run's folder."""
    folder = tmp_path_factory.mktemp("adapter")
    train(folder / "lora")
    for name, lines in (("train", LINES[::2]), ("held-out", LINES[1::2])):
        (folder / f"{name}.txt").write_text("\n".join(lines * 4))
    words = [LLMC, "compress", DEMO / "model", "--adapter", folder / "lora", "-t", "onnx-int4", "-o", folder / "out"]
    words += [
        "--pass",
        "gptq:group_size=64",
        "--calibration",
        folder / "train.txt",
        "--samples",
        "16",
        "--length",
        "64",
    ]
    words += ["--eval", folder / "held-out.txt", "--eval-length", "64", "--prompt", "16", "--output-tokens", "4"]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return folder / "out"


def train(out):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
        model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        tokens = tokenizer("\n".join(LINES[::2]), return_tensors="pt")["input_ids"][:, :448].view(8, -1)
        optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=5e-3)
        for _ in range(12):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(out)


def test_the_ledger_judges_by_the_fine_tuned_model(run):
    ledger = json.loads((run / "ledger.json").read_text())
    rows = {row["name"].partition(":")[0]: row for row in ledger["steps"]}
    perplexity = {name: row["quality"]["perplexity"]["value"] for name, row in rows.items() if row["quality"]}
    kl = {name: row["quality"]["kl"]["value"] for name, row in rows.items() if row["quality"]}
    assert list(rows)[:4] == ["original", "base, without the adapter", "lora-merge", "gptq"]
    assert perplexity["base, without the adapter"] > 2 * perplexity["original"], "training taught it something"
    assert 0 < kl["lora-merge"] < 1e-3 < kl["base, without the adapter"], (
        "only bfloat16 lies between merged and original"
    )
    assert kl["onnx-int4"] < 0.1 * kl["base, without the adapter"], "what was taught is still there in int4"
    assert kl["onnx-fp32, original"] < 1e-5, "the runtime's baseline is the fine-tuned model too"
    assert ledger["artifact"]["verified"]["mismatches"] == []


def test_the_merged_step_is_an_ordinary_folder(run):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "steps" / "01-lora-merge")
    assert model.dtype == torch.bfloat16
    step = json.loads((run / "steps" / "01-lora-merge" / "llmc-step.json").read_text())
    assert step["adapters"][0]["base"].endswith("model")
