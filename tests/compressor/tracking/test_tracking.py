"""Runs in the trackers' own offline modes, read back with their own readers."""

import json
import socket
from pathlib import Path

import pytest

from compressor.ledger import Ledger, StepRecord
from compressor.measure.accuracy import Quality
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate
from compressor.tracking.content import Content

NAN = float("nan")
HERE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    one = Estimate(0.5, 0.1)
    times = {"p50": 12.0, "p95": 15.0}
    rows = [
        StepRecord("original", size_bytes=100, key="k"),
        StepRecord("gptq", 3.0, size_bytes=25, quality=Quality(Estimate(33.0, 2.0), one, Estimate(NAN, None), one),
                   latency=[Latency(8, 128, 32, times, times, Estimate(90.0, 1.0))]),
    ]  # fmt: skip
    Ledger("m", {"passes": [{"gptq": {"bits": 4}}], "gate": None}, environment={"threads": 1}, steps=rows).save(folder)
    (folder / "report.html").write_text("<p>")
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Nothing but this machine is asked for, in no thread."""
    connect, look_up, asked = socket.socket.connect, socket.getaddrinfo, []

    def local(self, address):
        if self.family != socket.AF_UNIX and address[0] not in HERE:
            asked.append(address)
            raise OSError("there is no network")
        return connect(self, address)

    def known(host, *others, **more):
        if host not in HERE:
            asked.append(host)
            raise socket.gaierror("there is no network")
        return look_up(host, *others, **more)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket, "getaddrinfo", known)
    yield
    assert asked == []


def test_a_run_is_flat_and_finite(run):
    content = Content.of(run)
    assert content.name == "my-run"
    assert content.parameters == {"passes.0.gptq.bits": 4}
    assert content.tags == {"environment.threads": "1", "original": "k"}
    (_, first), (name, second) = content.rows
    assert first == {"size_bytes": 100.0}
    assert name == "gptq"
    assert second["perplexity"] == 33.0
    assert second["perplexity.stderr"] == 2.0
    assert second["batch8.ttft_ms.p95"] == 15.0
    assert "kl" not in second
    assert [file.name for file in content.files] == ["ledger.json", "report.html"]


def test_mlflow_has_parameters_rows_as_steps_and_files(llmc, run, tmp_path, no_network):
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = tracking.MlflowClient(tracking_uri=uri)
    code, shown, said = llmc("track", run, "--mlflow", uri, "--experiment", "mine", "--json")
    assert code == 0, said
    found = client.get_run(json.loads(shown)["mlflow"])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"passes.0.gptq.bits": "4"}
    assert found.data.metrics["perplexity"] == 33.0
    assert [one.value for one in client.get_metric_history(found.info.run_id, "size_bytes")] == [100, 25]
    assert len(list((tmp_path / "mlartifacts").rglob("ledger.json"))) == 1
    assert {one.path for one in client.list_artifacts(found.info.run_id)} == {"ledger.json", "report.html"}


def test_wandb_writes_an_offline_run(llmc, run, tmp_path, no_network):
    pytest.importorskip("wandb", reason="wandb is not installed")
    code, shown, said = llmc("track", run, "--wandb", tmp_path / "tracked", "--json")
    assert code == 0, said
    folder = Path(json.loads(shown)["wandb"])
    assert folder.name.startswith("offline-run-")
    assert folder.is_relative_to(tmp_path / "tracked")
    (kept,) = folder.glob("*.wandb")
    content = kept.read_bytes()
    for wanted in (b"passes.0.gptq.bits", b"perplexity.stderr", b"batch8.tokens_per_s", b"gptq"):
        assert wanted in content
    assert (folder / "files" / "ledger.json").is_file()


def test_a_tracker_has_to_be_named(llmc, run):
    code, _, said = llmc("track", run)
    assert code == 2
    assert "Where to?" in said
