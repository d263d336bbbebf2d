"""Text from a GGUF artifact, with llama.cpp in this process (pip install llama-cpp-python, which compiles it).

python gguf_llama_cpp_python.py ARTIFACT/model.gguf PROMPT
"""

import sys

from llama_cpp import Llama

path, prompt = sys.argv[1:]
model = Llama(path, n_ctx=1024, verbose=False)  # n_ctx: tokens of prompt and answer together
answer = model(prompt, max_tokens=40, temperature=0)
print(prompt + answer["choices"][0]["text"])
