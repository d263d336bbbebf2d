"""Text from a server with OpenAI's HTTP interface: vllm serve, llama-server, trtllm-serve.

python http_client.py http://127.0.0.1:8000 PROMPT
"""

import json
import sys
from urllib.request import Request, urlopen

server, prompt = sys.argv[1:]


def ask(path, **body):
    """The server's answer; a request with a body is a POST."""
    data = json.dumps(body).encode() if body else None
    with urlopen(Request(server + path, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


model = ask("/v1/models")["data"][0]["id"]
answer = ask("/v1/completions", model=model, prompt=prompt, max_tokens=40, temperature=0)
print(prompt + answer["choices"][0]["text"])
