"""Text from an ONNX artifact, with onnxruntime-genai.

python onnx_genai.py ARTIFACT PROMPT
"""

import sys

import onnxruntime_genai as og

folder, prompt = sys.argv[1:]
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
tokenizer.update_options(add_special_tokens=True)  # it adds no beginning-of-text token by itself
tokens = tokenizer.encode(prompt)

parameters = og.GeneratorParams(model)
# max_length counts prompt and answer together.
parameters.set_search_options(max_length=len(tokens) + 40, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(tokens)

stream = tokenizer.create_stream()
print(prompt, end="")
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
