"""Greedy text from the original model (transformers) and from an ONNX artifact (onnxruntime-genai), side by side.

python examples/demo/talk.py MODEL ARTIFACT
"""

from __future__ import annotations

import sys
from pathlib import Path

PROMPTS = (
    "On a rainy Monday morning Nina and her friend Paul were playing in the garden.",
    "The day after Thursday is",
    "Question: Which number comes after six?\nAnswer:",
)
NEW_TOKENS = 40


def main() -> None:
    """Print both continuations of every prompt."""
    model, artifact = map(Path, sys.argv[1:3])
    original, compressed = _transformers(model), _genai(artifact)
    for prompt in PROMPTS:
        print(f"\n{prompt!r}\n  original   {original(prompt)!r}\n  onnx-int4  {compressed(prompt)!r}")


def _transformers(root: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(root)
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)

    def continue_(prompt: str) -> str:
        tokens = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**tokens, do_sample=False, max_new_tokens=NEW_TOKENS)
        return tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)

    return continue_


def _genai(root: Path):
    import onnxruntime_genai as og

    model = og.Model(str(root))
    tokenizer = og.Tokenizer(model)
    tokenizer.update_options(add_special_tokens=True)  # as transformers does by itself

    def continue_(prompt: str) -> str:
        tokens = tokenizer.encode(prompt)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(tokens) + NEW_TOKENS)
        generator = og.Generator(model, parameters)
        generator.append_tokens(tokens)
        while not generator.is_done():
            generator.generate_next_token()
        return tokenizer.decode(generator.get_sequence(0)[len(tokens) :])

    return continue_


if __name__ == "__main__":
    main()
