"""The session, against a stand-in for the worker; `tests/engines` has the real one."""

import sys
from contextlib import closing

import numpy as np
import pytest

from compressor.engine import Place
from compressor.errors import RunError
from targets.engines import llama_cpp_session
from targets.engines.llama_cpp_session import LlamaCppSession

# Answers as `llama_cpp_worker` does, with logits that tell their place; a token of 99 breaks it, 98 stops it.
WORKER = """
import json, struct, sys, time
out = sys.stdout.buffer
if sys.argv[1].endswith("bad.gguf"):
    sys.exit("Error: llama.cpp does not load bad.gguf")
def say(head, content=b""):
    out.write(json.dumps({**head, "bytes": len(content)}).encode() + b"\\n" + content)
    out.flush()
say({"vocabulary": 3})
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "logits":
        if 99 in asked["tokens"]:
            print("Error: llama_decode gave -3", file=sys.stderr)
            sys.exit(7)
        if 98 in asked["tokens"]:
            time.sleep(60)
        for start in range(0, len(asked["tokens"]), 2):
            part = asked["tokens"][start : start + 2]
            rows = [float(start + n) * (k + 1) + token for n, token in enumerate(part) for k in range(3)]
            say({"start": start, "shape": [len(part), 3]}, struct.pack(f"{len(rows)}f", *rows))
        say({"done": True})
    elif asked["do"] == "prefill":
        say({"token": len(asked["prompts"]) * 10 + len(asked["prompts"][0]) + 100 * (asked["limit"] or 0)})
    else:
        say({"token": asked["token"] + 1})
"""


@pytest.fixture
def session(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(llama_cpp_session, "WORKER", worker)
    return lambda name="good.gguf": LlamaCppSession(tmp_path / name, 16, place=Place(sys.executable, None, "it", "1.2"))


def test_answers_are_passed_on(session):
    with closing(session()) as opened:
        assert opened.runtime == "llama.cpp (it 1.2) CPU"
        chunks = list(opened.logits(np.arange(5)))
        assert [(start, rows.shape) for start, rows in chunks] == [(0, (2, 3)), (2, (2, 3)), (4, (1, 3))]
        rows = np.concatenate([rows for _, rows in chunks])
        assert np.array_equal(rows, np.arange(5)[:, None] * (np.arange(3) + 1) + np.arange(5)[:, None])
        assert opened.prefill(np.zeros((2, 4), np.int64)) == 24
        assert opened.decode(24) == 25
        assert opened.prefill(np.zeros((2, 4), np.int64), 3) == 324


def test_a_file_that_does_not_load_is_told_in_one_sentence(session):
    with pytest.raises(RunError) as told:
        session("bad.gguf")
    assert str(told.value) == "llama.cpp ended with code 1; it said: Error: llama.cpp does not load bad.gguf."


def test_a_worker_that_breaks_is_told_in_one_sentence(session):
    with closing(session()) as opened, pytest.raises(RunError, match=r"code 7; it said: Error: llama_decode gave -3\."):
        list(opened.logits(np.array([1, 99])))


def test_a_worker_that_stops_answering_is_ended(session, monkeypatch):
    opened = session()
    monkeypatch.setattr(llama_cpp_session, "ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(RunError, match=r"did not answer in 0\.5 s"):
        list(opened.logits(np.array([98])))
    assert opened._process.has_ended
    with pytest.raises(RunError):
        opened.decode(1)


def test_a_text_that_is_too_long_is_refused(session):
    with closing(session()) as opened:
        for ask in (lambda: list(opened.logits(np.zeros(17, np.int64))), lambda: opened.prefill(np.zeros((1, 9)), 8)):
            with pytest.raises(RunError, match="room for 16 tokens here, and the text has 17"):
                ask()
