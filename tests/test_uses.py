"""The programs of `examples/use`: the pages of `docs/use` show them as they are, and they write the model's text."""

import json
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from compressor.cli import main

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "examples" / "use"
PAGES = sorted((ROOT / "docs" / "use").glob("*.md"))
PROMPT = "The day after Thursday is"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The folder of a run for onnx-int4 and hf of the demo model."""
    out = tmp_path_factory.mktemp("uses") / "out"
    words = ["compress", str(ROOT / "examples" / "demo" / "model"), "-t", "onnx-int4", "-t", "hf", "-o", str(out)]
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONSAFEPATH", "1")  # as the command line does, and undone
        main([*words, "--pass", "rtn:group_size=32", "--measure", "none"])
    assert ended.value.code == 0
    return out


@pytest.fixture
def written(capsys, monkeypatch):
    """What a program writes."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(PROGRAMS / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("program", sorted(PROGRAMS.iterdir()), ids=lambda path: path.name)
def test_one_page_shows_the_program_as_it_is(program):
    shown = f"\n{program.read_text(encoding='utf-8')}```\n"
    assert [page.name for page in PAGES if shown in page.read_text(encoding="utf-8")] != []


def test_onnxruntime_genai_writes_the_models_text(artifacts, written):
    text = written("onnx_genai.py", artifacts / "onnx-int4" / "artifact", PROMPT)
    assert text.startswith(f"{PROMPT} Friday. ")
    # The same tokens: without the one that begins a text, the model goes on with a question.
    assert text == written("onnx_plain.py", artifacts / "onnx-int4" / "artifact", PROMPT)


def test_onnxruntime_genai_answers_a_message(artifacts, written):
    answer = written("onnx_chat.py", artifacts / "onnx-int4" / "artifact", "Which number comes after six?")
    assert answer.startswith(" Seven.\n")


def test_transformers_writes_the_models_text(artifacts, written):
    assert written("hf_transformers.py", artifacts / "hf" / "artifact", PROMPT).startswith(f"{PROMPT} Friday. ")


class Server(BaseHTTPRequestHandler):
    """Answers as OpenAI's interface does, with the words of the request."""

    def do_GET(self):
        self._answer({"data": [{"id": "a-model"}]} if self.path == "/v1/models" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        expected = {"model": "a-model", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
        known = (self.path, body, self.headers["Content-Type"]) == ("/v1/completions", expected, "application/json")
        self._answer({"choices": [{"text": " Friday."}]} if known else {})

    def log_message(self, *words):
        pass

    def _answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_the_client_asks_a_server(written):
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            text = written("http_client.py", f"http://127.0.0.1:{server.server_port}", PROMPT)
        finally:
            server.shutdown()
    assert text == f"{PROMPT} Friday.\n"
