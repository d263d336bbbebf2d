"""Text from an ONNX artifact, with onnxruntime alone: the key-value cache is passed from token to token.

python onnx_plain.py ARTIFACT PROMPT
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

folder, prompt = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
ends = np.atleast_1d(config["eos_token_id"])

options = onnxruntime.SessionOptions()
for key, value in config["decoder"]["session_options"].items():
    if key.startswith("session."):  # settings that the graph needs for exact products
        options.add_session_config_entry(key, value)
session = onnxruntime.InferenceSession(folder / "model.onnx", options)
names = [output.name for output in session.get_outputs()]

tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(prompt)["input_ids"]  # with the beginning-of-text token
cache = {
    entry.name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), TYPES[entry.type])
    for entry in session.get_inputs()
    if entry.name.startswith("past_key_values")
}
new = tokens
for _ in range(40):
    feeds = {"input_ids": np.array([new]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    outputs = dict(zip(names, session.run(names, feeds | cache), strict=True))
    token = int(outputs["logits"][0, -1].argmax())  # greedy
    if token in ends:
        break
    cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
    new, tokens = [token], [*tokens, token]
print(tokenizer.decode(tokens, skip_special_tokens=True))
