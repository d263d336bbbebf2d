"""The answer to a message, from an ONNX artifact of a chat model, with onnxruntime-genai.

python onnx_chat.py ARTIFACT MESSAGE
"""

import json
import sys

import onnxruntime_genai as og

folder, message = sys.argv[1:]
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
messages = json.dumps([{"role": "user", "content": message}])
text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
tokens = tokenizer.encode(text)  # the chat template writes the special tokens itself: none are added

parameters = og.GeneratorParams(model)
# max_length counts prompt and answer together.
parameters.set_search_options(max_length=len(tokens) + 40, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(tokens)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)[len(tokens) :]))
