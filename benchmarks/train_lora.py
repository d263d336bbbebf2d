"""Train a small LoRA with peft and merge it: takes a model off the grid that a quantized download sits on.

    python benchmarks/train_lora.py MODEL --texts gsm8k/train.jsonl --steps 80 --out merged

MODEL is a Hugging Face folder; the texts are lines of {"question", "answer"}. The number of steps and
the seed are fixed, so that the same kind of machine makes the same model again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import torch

STEPS = 80


def main() -> None:
    """Parse the command line, train, merge, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    train(arguments.model, arguments.texts, arguments.out, arguments.steps, arguments.rank)


def train(root: Path, texts: Path, out: Path, steps: int, rank: int) -> list[float]:
    """Train so many steps and save the merged model in float32; returns the losses."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root)
    model = with_lora(root, rank)
    losses = fit(model, islice(_batches(tokenizer, texts), steps), rate=5e-4)
    merged = model.merge_and_unload()
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return losses


def with_lora(root: Path, rank: int):
    """The model in float32 with a new LoRA on every linear, as peft makes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def fit(model, batches: Iterable[Mapping[str, torch.Tensor]], rate: float) -> list[float]:
    """One update of what can be trained for each batch; returns the losses."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if len(losses) % 10 == 0:
            print(f"step {len(losses)}  loss {sum(losses[-10:]) / 10:.3f}", flush=True)
    return losses


def _batches(tokenizer, texts: Path, size: int = 4, length: int = 192):
    """Endless shuffled batches of worked problems in the model's own chat template."""
    problems = [json.loads(line) for line in texts.read_text().splitlines()]
    generator = random.Random(0)
    while True:
        chosen = generator.sample(problems, size)
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": one["question"]}, {"role": "assistant", "content": one["answer"]}],
                tokenize=False,
            )
            for one in chosen
        ]
        batch = tokenizer(chats, return_tensors="pt", padding=True, truncation=True, max_length=length)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        yield batch


if __name__ == "__main__":
    main()
