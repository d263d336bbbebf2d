"""Text from a GGUF artifact, with llama.cpp in this process (pip install xllamacpp).

python gguf_xllamacpp.py ARTIFACT/model.gguf PROMPT
"""

import sys

import xllamacpp

path, prompt = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx = 1024  # tokens of prompt and answer together
server = xllamacpp.Server(parameters)
answer = server.handle_completions({"prompt": prompt, "max_tokens": 40, "temperature": 0})
print(prompt + answer["choices"][0]["text"])
