"""Stands in for vLLM's server: the same requests and answers, from a table of logits by the last token.

Installed as the module `vllm.entrypoints.openai.api_server` of a virtual environment. What the key `fake` of the
served config.json says goes wrong. FAKE_STARTS is a file that has a line for each start; after FAKE_REQUESTS
generations or texts it breaks, in the middle of an answer.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def logits(token, vocabulary):
    return [4 * math.sin(1 + token * vocabulary + other) for other in range(vocabulary)]


def log_probabilities(token, vocabulary):
    row = logits(token, vocabulary)
    total = math.log(sum(map(math.exp, row)))
    return [value - total for value in row]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    given = config = None
    left = float(os.environ.get("FAKE_REQUESTS", "inf"))

    def do_GET(self):
        card = {"id": "it", "root": self.given.model, "max_model_len": self.given.max_model_len}
        self.answer({"/health": {}, "/version": {"version": "0.99+cpu"}, "/v1/models": {"data": [card]}}[self.path])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.config.get("fake") == "breaks":
            self.end()
        Handler.left -= 1
        if self.path == "/v1/chat/completions":
            self.answer({"choices": [{"message": {"content": asked["messages"][0]["content"].upper()}}]})
        elif asked.get("stream"):
            self.stream(asked)
        elif max(map(len, asked["prompt"])) + asked["max_tokens"] > self.given.max_model_len:
            self.answer({"error": {"message": "This model's maximum context length is exceeded"}}, 400)
        else:
            choices = [self.choice(index, prompt, asked) for index, prompt in enumerate(asked["prompt"])]
            self.answer({"choices": choices[::-1]})

    def choice(self, index, prompt, asked):
        count, pairs = asked["prompt_logprobs"], itertools.pairwise(prompt)
        rows = [self.likely(token, count, following) for token, following in pairs]
        told = [None, *({str(t): {"logprob": x, "rank": 1} for t, x in row.items()} for row in rows)]
        last = self.likely(prompt[-1], asked["logprobs"], None)
        return {
            "index": index,
            "prompt_logprobs": told,
            "logprobs": {"top_logprobs": [{f"token_id:{token}": x for token, x in last.items()}]},
        }

    def likely(self, token, count, following):
        row = log_probabilities(token, self.config["vocab_size"])
        order = sorted(range(len(row)), key=lambda other: -row[other])[:count]
        return {other: row[other] for other in [*order, *([] if following is None else [following])]}

    def stream(self, asked):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        last = [prompt[-1] for prompt in asked["prompt"]]
        for _ in range(asked["max_tokens"]):
            if self.left < 0:
                self.wfile.write(b'data: {"choices": [{"ind')
                self.end()
            for index, token in reversed(list(enumerate(last))):
                row = logits(token, self.config["vocab_size"])
                last[index] = row.index(max(row))
                event = {"choices": [{"index": index, "token_ids": [last[index]]}]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def answer(self, value, code=200):
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.left < 0:
            self.wfile.write(content[:9])
            self.end()
        self.wfile.write(content)

    def end(self):
        sys.stderr.write("RuntimeError: kernel fault\n")
        os._exit(3)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-model-len", type=int)
    Handler.given, _ = parser.parse_known_args()
    if "FAKE_STARTS" in os.environ:
        with Path(os.environ["FAKE_STARTS"]).open("a") as starts:
            starts.write(f"{Handler.given.model}\n")
    Handler.config = json.loads((Path(Handler.given.model) / "config.json").read_text())
    if Handler.config.get("fake") == "dies":
        sys.stderr.write("INFO loading\nNotImplementedError: no kernel for int3\nINFO bye\n")
        sys.exit(1)
    if Handler.config.get("fake") == "sleeps":
        time.sleep(60)
    ThreadingHTTPServer(("127.0.0.1", Handler.given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
