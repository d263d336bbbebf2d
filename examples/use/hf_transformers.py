"""Text from a folder that transformers opens: targets hf, hf-nf4, vllm-int4, vllm-int8 and vllm-fp8.

python hf_transformers.py ARTIFACT PROMPT
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
tokens = tokenizer(prompt, return_tensors="pt").to(model.device)
output = model.generate(**tokens, do_sample=False, max_new_tokens=40)
print(tokenizer.decode(output[0], skip_special_tokens=True))
