"""What is asked of vLLM's OpenAI-compatible server: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.

Prompts are token ids, so that no tokenizer stands between two runtimes that are compared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from compressor.errors import RunError

ANSWER_TIMEOUT_S = 600  # of one answer; prompts of thousands of tokens take minutes on a CPU
PLACEHOLDER = "token_id:"

Likely = dict[int, float]  # log-probability by token


@dataclass(frozen=True)
class Client:
    """A server by its URL."""

    url: str

    def is_ready(self) -> bool:
        """Whether it answers that it is well."""
        try:
            return self._request("GET", "/health", None, timeout=5).status == 200
        except (OSError, HTTPException):
            return False

    def version(self) -> str:
        return str(self._json("GET", "/version")["version"])

    def model(self) -> dict[str, Any]:
        """The card of the one model that is served: its `id`, and the folder as `root`."""
        cards = self._json("GET", "/v1/models")["data"]
        if len(cards) != 1:
            raise RunError(f"{self.url} serves {len(cards)} models, and one is wanted.")
        return cards[0]

    def chat(self, model: str, content: str, tokens: int) -> str:
        """The greedy answer to one message of a user."""
        messages = [{"role": "user", "content": content}]
        asked = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        return str(self._json("POST", "/v1/chat/completions", asked)["choices"][0]["message"]["content"])

    def likely(self, model: str, prompts: Sequence[list[int]], count: int) -> list[list[Likely]]:
        """Of each position of each prompt, the `count` likeliest tokens to follow, and the one that follows."""
        asked = {
            "model": model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": count,
            "logprobs": count,
            "return_tokens_as_token_ids": True,
        }
        timeout = ANSWER_TIMEOUT_S * len(prompts)
        choices = self._json("POST", "/v1/completions", asked, timeout)["choices"]
        return [self._told(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]

    @staticmethod
    def _told(choice: dict[str, Any]) -> list[Likely]:
        told = [{int(token): entry["logprob"] for token, entry in row.items()} for row in choice["prompt_logprobs"][1:]]
        (last,) = choice["logprobs"]["top_logprobs"]
        return [*told, {int(token.removeprefix(PLACEHOLDER)): logprob for token, logprob in last.items()}]

    def generate(self, model: str, prompts: list[list[int]], tokens: int) -> Iterator[int]:
        """The greedy continuation of the first prompt, a token as soon as every prompt has as many.

        Raises:
            RunError: as `rows`.
        """
        given = 0
        with contextlib.closing(self.rows(model, prompts, tokens)) as told:
            for rows in told:
                complete = min(map(len, rows))
                yield from rows[0][given:complete]
                given = complete

    def rows(self, model: str, prompts: Sequence[list[int]], tokens: int) -> Generator[list[list[int]], None, None]:
        """The greedy continuations of all prompts, as far as they have come: the same lists, longer each time.

        Raises:
            RunError: the server refuses, or breaks off.
        """
        asked = {
            "model": model,
            "prompt": prompts,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        rows: list[list[int]] = [[] for _ in prompts]
        with self._answering("/v1/completions"):
            response = self._checked(self._request("POST", "/v1/completions", asked, ANSWER_TIMEOUT_S))
            try:
                for event in _events(response):
                    for choice in event["choices"]:
                        rows[choice["index"]] += choice["token_ids"] or []
                    yield rows
            finally:
                response.close()  # what is still being generated is given up by the server

    def _json(self, method: str, path: str, body: Any = None, timeout: float = ANSWER_TIMEOUT_S) -> Any:
        with self._answering(path):
            return json.loads(self._checked(self._request(method, path, body, timeout)).read())

    @contextlib.contextmanager
    def _answering(self, path: str) -> Iterator[None]:
        """Tell in one sentence that the server is gone, or went in the middle of a line."""
        try:
            yield
        except (OSError, HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
            raise RunError(f"{self.url}{path} did not answer ({said}).") from error

    def _request(self, method: str, path: str, body: Any, timeout: float) -> HTTPResponse:
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.netloc, timeout=timeout)
        content = None if body is None else json.dumps(body)
        # One request a connection: the response closes it.
        connection.request(method, parts.path + path, content, {"Content-Type": "application/json"})
        return connection.getresponse()

    def _checked(self, response: HTTPResponse) -> HTTPResponse:
        if response.status == 200:
            return response
        text = response.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]["message"]
        raise RunError(f"{self.url} answers {response.status}: {' '.join(text.split())[:300].rstrip('.')}.")


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON values of a stream of server-sent events.

    Raises:
        RunError: it tells of an error, or ends without saying that it is whole.
    """
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise RunError(f"The server broke off: {event['error'].get('message', event['error'])}.")
            yield event
    raise RunError("The server broke off its answer.")
