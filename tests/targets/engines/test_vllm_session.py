"""The session over HTTP, against a stand-in for the server; `tests/engines` has the real one."""

import json
import os
import shutil
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch

from compressor.errors import RunError
from targets.engines import VLLM, vllm_session
from targets.engines.vllm_session import VllmSession

VOCABULARY, LENGTH = 288, 32
TOKENS = np.arange(5, 25)


@pytest.fixture
def artifact(tiny_model, tmp_path):
    """`artifact(fake)`: a folder that the stand-in serves, and what goes wrong then."""

    def make(fake=None):
        root = tmp_path / "artifact"
        root.mkdir()
        config = json.loads((tiny_model("llama") / "config.json").read_text())
        changed = {"fake": fake, "max_position_embeddings": LENGTH, "dtype": "bfloat16"}
        (root / "config.json").write_text(json.dumps(config | changed))
        return root

    return make


def test_logits_are_those_of_the_likeliest_tokens_and_of_the_next(environment, artifact, table, monkeypatch):
    monkeypatch.setattr(vllm_session, "CHUNK_BYTES", 7 * 4 * VOCABULARY)
    with closing(VllmSession(artifact())) as session:
        assert session.runtime == "vLLM 0.99 bfloat16 CPU"
        chunks = list(session.logits(TOKENS))
    assert [start for start, _ in chunks] == [0, 7, 14]
    rows = torch.from_numpy(np.concatenate([rows for _, rows in chunks]))
    wanted = table[TOKENS]
    told = ~torch.isneginf(rows)
    assert rows.shape == wanted.shape
    assert set(told.sum(1).tolist()) <= {vllm_session.LIKELY, vllm_session.LIKELY + 1}
    assert torch.allclose(rows[told], wanted[told], atol=1e-5)
    assert bool(told.gather(1, wanted.topk(vllm_session.LIKELY).indices).all())
    assert bool(told[:-1].gather(1, torch.from_numpy(TOKENS)[1:, None]).all())


def test_a_text_as_long_as_is_served_lacks_the_last_position_only(environment, artifact):
    with closing(VllmSession(artifact())) as session:
        rows = sum(len(rows) for _, rows in session.logits(np.arange(LENGTH)))
        assert rows == LENGTH - 1
        with pytest.raises(RunError, match="serves 32 tokens here, and the text has 33"):
            list(session.logits(np.arange(LENGTH + 1)))


def test_generations_go_on_token_by_token_and_can_be_given_up(environment, artifact, table):
    with closing(VllmSession(artifact())) as session:
        for prompts in (TOKENS[None], np.stack([TOKENS[::-1], TOKENS])):
            wanted = [int(table[prompts[0, -1]].argmax())]
            found = [session.prefill(prompts)]
            for _ in range(4):
                wanted.append(int(table[wanted[-1]].argmax()))
                found.append(session.decode(found[-1]))
            assert found == wanted
        with pytest.raises(RunError, match="went on with token"):
            session.decode(found[-1] + 1)
        assert session.chat("hello") == "HELLO"


def test_several_texts_are_asked_in_one_request(environment, artifact, table):
    """The server's answers may be in any order; rows end by themselves, and the last one ends the request."""
    texts = [TOKENS, TOKENS[:3], TOKENS[::-1][:9]]
    with closing(VllmSession(artifact())) as session:
        alone = [np.concatenate([rows for _, rows in session.logits(text)]) for text in texts]
        parts = [[] for _ in texts]
        for number, start, rows in session.logits_of(texts):
            assert start == sum(map(len, parts[number]))
            parts[number].append(rows)
        for one, part in zip(alone, parts, strict=True):
            assert np.array_equal(one, np.concatenate(part))
        ends = int(table[TOKENS[2]].argmax())
        found = session.generate(texts, 5, lambda tokens: tokens[-1] == ends)
        wanted = [greedy(table, text[-1], 5) for text in texts]
        assert found == [tokens[: tokens.index(ends) + 1] if ends in tokens else tokens for tokens in wanted]
        assert len(found[1]) == 1
        assert session.prefill(TOKENS[None]) == wanted[0][0], "what was given up does not stand in the way"
        with pytest.raises(RunError, match="serves 32 tokens here, and the text has 33"):
            session.generate(texts, 13, lambda tokens: False)


def greedy(table, token, count):
    found = []
    for _ in range(count):
        token = int(table[token].argmax())
        found.append(token)
    return found


def test_a_server_that_does_not_start_is_told_in_one_sentence(environment, artifact):
    with pytest.raises(RunError) as told:
        VllmSession(artifact("dies"))
    assert str(told.value) == "vLLM ended with code 1; it said: NotImplementedError: no kernel for int3."


def test_a_server_that_takes_too_long_is_ended(environment, artifact, monkeypatch):
    monkeypatch.setattr(vllm_session, "START_TIMEOUT_S", 1.0)
    with pytest.raises(RunError, match="was not ready after 1 s"):
        VllmSession(artifact("sleeps"))
    assert not servers(environment)


def test_a_server_that_breaks_in_a_request_is_told_in_one_sentence(environment, artifact):
    with (
        closing(VllmSession(artifact("breaks"))) as session,
        pytest.raises(RunError, match=r"vLLM ended with code 3; it said: RuntimeError: kernel fault\."),
    ):
        list(session.logits(TOKENS))
    assert not servers(environment)


def test_ctrl_c_while_it_starts_ends_the_server(environment, artifact, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(vllm_session.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        VllmSession(artifact("sleeps"))
    assert not servers(environment)


def test_a_server_that_runs_already_is_asked_if_it_serves_the_artifact(environment, artifact, tmp_path, monkeypatch):
    root = artifact()
    with closing(VllmSession(root)) as first:
        monkeypatch.setenv(VLLM.variable, first._client.url)
        with closing(VllmSession(root)) as second:
            assert second.runtime == "vLLM 0.99 bfloat16 server"
            (_, rows), *_ = second.logits(TOKENS)
            assert np.isfinite(rows[-1]).sum() == vllm_session.LIKELY_BY_DEFAULT
        other = shutil.copytree(root, tmp_path / "other")
        with pytest.raises(RunError, match="which is not"):
            VllmSession(other)
        first._client.model()  # a server that was not started here goes on


def servers(environment):
    """Processes of the stand-in's environment that still run."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith(os.fspath(environment)) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
