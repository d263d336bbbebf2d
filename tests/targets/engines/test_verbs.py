"""Every verb that measures, with an artifact behind vLLM's server, against a stand-in for it."""

import json
import os

import numpy as np
import psutil
import pytest

from compressor.bench.crossover import Crossover
from compressor.bench.peak import peak_memory
from compressor.bench.run import bench
from compressor.errors import InputError
from compressor.ledger import load_ledger
from compressor.measure.answers import Continuation
from compressor.measure.latency import Workload
from compressor.open_folder import open_folder
from targets.engines import vllm_session

MOOD = "kind: classification\ndata: mood.jsonl\nprompt: '{{ text }}'\nanswer: label\nchoices: [' good', ' bad']\n"
SAYS = "kind: question-answering\ndata: says.jsonl\nprompt: '{{ q }}'\nanswer: a\nmax_tokens: 3\nstop: []\n"
LENGTH = 64
W8A8 = "rtn:bits=8,group_size=channel,activations=dynamic"  # which the CPU build has kernels for everywhere


@pytest.fixture
def run(environment, tiny_model, llmc, tmp_path):
    """`run(*words)`: the folder of a run for vllm-int4 or another target, and what was said."""

    def make(*words, model=None, target="vllm-int4", spec="rtn:group_size=32"):
        text = tmp_path / "text.txt"
        text.write_text("The old mill turns by the river. " * 6)
        out = tmp_path / "out"
        short = ("--eval", text, "--eval-length", 32, "--prompt", 8, "--output-tokens", 4)
        code, _, said = llmc(
            *("compress", model or tiny_model("llama"), "-t", target, "--pass", spec),
            *("-o", out, *short, *words),
        )
        assert code == 0, said
        return out

    return make


@pytest.fixture
def unmeasured(run):
    return run("--measure", "none")


def test_compress_starts_the_server_once_for_the_probe_the_judging_and_the_times(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_STARTS", str(tmp_path / "starts"))
    shipped = load_ledger(run()).steps[-1]
    assert (shipped.runtime, shipped.not_run) == ("vLLM 0.99 bfloat16 CPU", None)
    assert shipped.quality is not None
    assert len(shipped.latency) == 1
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


# After a generation and a text for the probe: six windows, six generations that are timed, three that people read.
@pytest.mark.parametrize(("requests", "part", "timed"), [(11, "after 2 of 5 repeats", 2), (15, "let write", 5)])
@pytest.mark.usefixtures("whole_continuations")
def test_a_server_that_dies_in_a_run_keeps_what_it_told(run, monkeypatch, requests, part, timed):
    monkeypatch.setattr("compressor.measure.latency._is_narrow", lambda times: False)  # all repeats are taken
    monkeypatch.setenv("FAKE_REQUESTS", str(requests))
    shipped = load_ledger(run()).steps[-1]
    assert part in shipped.not_run
    assert "vLLM ended with code 3; it said: RuntimeError: kernel fault" in shipped.not_run
    assert shipped.quality is not None
    assert len(shipped.latency[0].repeats["ttft_ms"]) == timed
    assert shipped.measured_with is None, "so that a resumed run measures it again"


def test_bench_times_it_in_turns_and_closes_it(unmeasured, environment):
    steps = unmeasured / "steps" / "01-rtn"
    workloads = [Workload(batch, 8, 4, repeats=3, warmup=0) for batch in (1, 3)]
    found = bench([steps, unmeasured], workloads, memory=False, progress=lambda *_: None)
    of_vllm = [row for row in found.rows if row.runtime == "vLLM 0.99 bfloat16 CPU"]
    assert [row.workload.batch for row in of_vllm] == [1, 3]
    assert all(row.latency and row.not_run is None for row in of_vllm)
    assert isinstance(found.pairs[0].found, Crossover)
    assert not _servers(environment)


def test_memory_is_that_of_the_server_too(run, environment):
    """In a process of its own, which knows what kernels the build for the CPU has on this very processor."""
    out = run("--measure", "none", target="vllm-int8", spec=W8A8)
    assert peak_memory(out, Workload(1, 8, 2, 2)) > 50 << 20
    assert not _servers(environment)


def test_bench_keeps_what_was_timed_before_the_server_died(llmc, unmeasured, environment, monkeypatch):
    monkeypatch.setenv("FAKE_REQUESTS", "5")
    step = unmeasured / "steps" / "01-rtn"
    words = ("--batch", 1, "--batch", 2, "--prompt", 8, "--output-tokens", 4, "--repeats", 3, "--warmup", 0)
    code, shown, said = llmc("bench", step, unmeasured, *words, "--no-memory", "--json")
    assert code == 0, said
    found = json.loads(shown)
    first, second = (row for row in found["rows"] if row["name"] == str(unmeasured))
    assert first["not_run"] is None
    assert len(second["latency"]["repeats"]["ttft_ms"]) == 2
    reason = "it broke after 2 of 3 repeats (batch 2, 8 + 4 tokens): vLLM ended with code 3"
    assert second["not_run"].startswith(reason)
    assert "kernel fault" in second["not_run"]
    assert [row["workload"]["batch"] for row in found["rows"] if row["name"] == str(step)] == [1, 2]
    code, shown, _ = llmc("bench", step, unmeasured, *words, "--no-memory")
    assert (code, reason in " ".join(shown.split())) == (0, True)
    assert not _servers(environment)


def test_a_batch_is_through_when_its_last_row_is(unmeasured, table):
    session = vllm_session.VllmSession(unmeasured / "artifact")
    prompts = np.array([[4, 9], [4, 8], [4, 7]])
    told = []
    honest = vllm_session.Client.generate

    def watched(self, *given):
        for token in honest(self, *given):
            told.append(token)
            yield token

    vllm_session.Client.generate, before = watched, honest
    try:
        assert [session.prefill(prompts, 3), session.decode(told[-1]), session.decode(told[-1])] == told
    finally:
        vllm_session.Client.generate = before
        session.close()
    assert told[0] == int(table[9].argmax())


def test_score_asks_it_and_keeps_the_answers(llmc, unmeasured, tmp_path, table, byte_tokenizer):
    lines = [{"text": f"{word} day", "label": number % 2} for number, word in enumerate(("a", "my", "no"))]
    questions = [{"q": f"What of {word}", "a": word} for word in ("tea", "rain")]
    for name, values, task in (("mood", lines, MOOD), ("says", questions, SAYS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
        (tmp_path / f"{name}.yaml").write_text(task)
    tasks = ("--task", tmp_path / "mood.yaml", "--task", tmp_path / "says.yaml")
    code, shown, said = llmc("score", unmeasured, *tasks, "--json")
    assert code == 0, said
    assert list(json.loads(shown)) == ["original", "vllm-int4"]
    row = load_ledger(unmeasured).steps[-1]
    assert [one.runtime for one in row.tasks] == ["vLLM 0.99 bfloat16 CPU"] * 2

    from pyarrow import parquet

    mood, says = (parquet.read_table(unmeasured / one.samples.path).to_pandas() for one in row.tasks)
    for text, told in zip(lines, mood.likelihoods, strict=True):
        for choice, likelihood in zip((" good", " bad"), told, strict=True):
            tokens = byte_tokenizer(text["text"] + choice)["input_ids"]
            pairs = zip(tokens[-len(choice) - 1 : -1], tokens[-len(choice) :], strict=True)
            assert likelihood == pytest.approx(sum(float(table[a, b]) for a, b in pairs), abs=1e-3)
    for question, told in zip(questions, says.prediction, strict=True):
        assert told == _written(table, byte_tokenizer, question["q"], 3).strip()


def test_lm_eval_asks_it(unmeasured, table, byte_tokenizer):
    pytest.importorskip("lm_eval")
    from compressor.lm_eval_model import LlmcLM

    asked = LlmcLM(str(unmeasured / "artifact"))
    try:
        assert asked.runtime == "vLLM 0.99 bfloat16 CPU"
        ((total, greedy),) = asked._loglikelihood_tokens([(None, [5, 6], [7, 8])])
        assert total == pytest.approx(float(table[6, 7] + table[7, 8]), abs=1e-3)
        assert greedy == bool(table[6].argmax() == 7 and table[7].argmax() == 8)
        assert asked._generated(["a", "bc"], {"until": [], "max_gen_toks": 2}, lambda *_: None) == [
            _written(table, byte_tokenizer, text, 2) for text in ("a", "bc")
        ]
    finally:
        asked.close()


def test_what_is_longer_than_is_served_is_refused_before_anything_is_asked(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_session, "SERVED_LENGTH", LENGTH)
    out = run("--measure", "none")
    answerer, _ = open_folder(out / "artifact", tmp_path / "scratch", lambda *_: None)
    try:
        texts = [Continuation([5, 6], 1), Continuation(list(range(LENGTH + 1)), 3)]
        with pytest.raises(InputError, match=r"A text takes 65 tokens, and vLLM .* has room for 64 here"):
            answerer.likelihoods(texts, lambda *_: pytest.fail("asked"))
        with pytest.raises(InputError, match="takes 65 tokens"):
            answerer.generate([list(range(60))], 5, lambda found: False, lambda *_: None)
        (tokens,) = answerer.generate([list(range(60))], 4, lambda found: False, lambda *_: None)
        assert len(tokens) == 4
    finally:
        answerer.close()


def test_a_batch_that_its_cache_has_no_room_for_is_said(unmeasured, monkeypatch):
    monkeypatch.setattr(vllm_session, "CACHED_TOKENS", 1024)
    found = bench([unmeasured], [Workload(batch, 8, 4, 2, 0) for batch in (8, 9)], False, lambda *_: None)
    assert [row.not_run is None for row in found.rows] == [True, False]
    assert "room for 1024 tokens here, and 9 texts take 12 each" in found.rows[1].not_run


def _written(table, tokenizer, prompt, tokens):
    """The stand-in's greedy continuation."""
    found = tokenizer(prompt)["input_ids"][-1:]
    for _ in range(tokens):
        found.append(int(table[found[-1]].argmax()))
    return tokenizer.decode(found[1:], skip_special_tokens=True)


def _servers(environment):
    words = (process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"]))
    return [one for one in words if one and one[0].startswith(os.fspath(environment))]
