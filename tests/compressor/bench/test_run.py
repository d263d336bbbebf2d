"""`llmc bench`: folders in turns, each workload, and what is left when one dies."""

import json

import numpy as np
import pytest

from compressor.architecture import read_config, resolve
from compressor.bench import peak
from compressor.bench import run as bench_run
from compressor.bench.peak import peak_memory
from compressor.errors import RunError
from compressor.measure.latency import Workload

QUICK = ("--prompt", 4, "--output-tokens", 2, "--repeats", 3, "--warmup", 0)


class Clock:
    """A session on a clock of its own: `cost(batch)` seconds a call."""

    def __init__(self, time, cost, dies_at=None):
        self.runtime, self.longest, self._time, self._cost, self._dies_at = "clock", None, time, cost, dies_at
        self._batch = 0

    def prefill(self, tokens, limit):
        self._batch = len(tokens)
        if self._batch == self._dies_at:
            raise RunError("The server ended with code 9.")
        return self.decode(0)

    def decode(self, token):
        self._time[0] += self._cost(self._batch)
        return 1

    def close(self): ...


@pytest.fixture
def clocks(monkeypatch, tiny_model, tmp_path):
    """Makes `bench_run` time sessions of these costs, by the names of folders."""
    shape = resolve(read_config(tiny_model("llama")))

    def make(**costs):
        time = [0.0]
        sessions = {name: Clock(time, *cost) for name, cost in costs.items()}
        monkeypatch.setattr("compressor.measure.latency.time.perf_counter", lambda: time[0])
        monkeypatch.setattr(bench_run, "open_subject", lambda path: (sessions[path.name], shape))
        return [tmp_path / name for name in sessions]

    return make


def workloads(*batches):
    return [Workload(batch, 8, 4, repeats=3) for batch in batches]


def test_the_batch_at_which_the_second_stops_paying_is_found(clocks):
    # Float: twice the time to read its weights; int4: slower for each row that it computes.
    paths = clocks(float=(lambda batch: 2.0 + 0.1 * batch,), int4=(lambda batch: 1.0 + 0.3 * batch,))
    found = bench_run.bench(paths, workloads(1, 2, 4, 8), memory=False, progress=lambda *_: None)
    (pair,) = found.pairs
    assert (pair.found.pays_to, pair.found.ends_at) == (4, 8)
    assert 4 < pair.found.estimate < 6  # 1 = 0.2 batch
    assert pair.ratios[1].value == pytest.approx(1.3 / 2.1)
    (row,) = [one for one in found.rows if one.workload.batch == 4 and one.name.endswith("float")]
    assert row.latency.requests_per_s.value == pytest.approx(4 / (4 * 2.4))
    assert row.latency.tokens_per_s.value == pytest.approx(4 / 2.4)


def test_one_that_dies_leaves_what_it_did_and_the_other_goes_on(clocks):
    paths = clocks(float=(lambda batch: 2.0,), int4=(lambda batch: 1.0, 4))
    found = bench_run.bench(paths, workloads(1, 4, 8), memory=False, progress=lambda *_: None)
    of_int4 = [row for row in found.rows if row.name.endswith("int4")]
    assert [row.latency is None for row in of_int4] == [False, True]
    assert of_int4[1].not_run == "it broke after 0 of 3 repeats (batch 4, 8 + 4 tokens): The server ended with code 9"
    assert [row.workload.batch for row in found.rows if row.name.endswith("float")] == [1, 4, 8]
    assert list(found.pairs[0].ratios) == [1]
    json.dumps(found.plain())


def test_a_model_and_its_artifact_are_timed_in_their_own_runtimes(llmc, tiny_model, tmp_path):
    root, out = tiny_model("llama"), tmp_path / "out"
    passes = ("--pass", "rtn:group_size=32")
    code, _, said = llmc("compress", root, "-t", "onnx-int4", *passes, "--measure", "none", "-o", out)
    assert code == 0, said
    code, shown, said = llmc("bench", root, out, *QUICK, "--no-memory", "--batch", 2, "--json", "-o", tmp_path / "b")
    assert code == 0, said
    found = json.loads(shown)
    assert json.loads((tmp_path / "b").read_text()) == found
    assert [row["runtime"].split()[0] for row in found["rows"]] == ["transformers", "onnxruntime"]
    for row in found["rows"]:
        assert row["latency"]["turns"] == [str(root), str(out)]
        assert set(row["latency"]["ttft_ms"]) == {"p50", "p95", "p99"}
        low, high = row["latency"]["intervals"]["request_ms"]
        assert low <= np.exp(np.log(row["latency"]["repeats"]["request_ms"]).mean()) <= high
    code, shown, _ = llmc("bench", root, out, *QUICK, "--no-memory")
    assert (code, f"4 + 2 tokens: {out}" in shown.replace("\n", "")) == (0, True)


def test_memory_is_that_of_a_process_of_its_own(tiny_model):
    root = tiny_model("llama")
    assert peak_memory(root, Workload(1, 4, 2, 2)) > 50 << 20  # PyTorch alone is more
    with pytest.raises(RunError, match=r"its memory could not be measured: .*no folder of a model"):
        peak_memory(root / "none", Workload(1, 4, 2, 2))


def test_memory_of_a_process_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(peak, "TIMEOUT_S", 0.01)
    with pytest.raises(RunError, match="it did not end within"):
        peak_memory(tmp_path, Workload(1, 4, 2, 2))


def test_what_cannot_be_timed_is_refused(llmc, tiny_model, tmp_path):
    root = tiny_model("llama")
    for words, said in (
        ([root, root], "is given twice"),
        ([root, "--prompt", 600], "longer than the context"),
        ([tmp_path / "none"], "no folder of a model"),
    ):
        code, _, err = llmc("bench", *words)
        assert (code, said in err) == (2, True), err
