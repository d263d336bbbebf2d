"""A run that is really interrupted, as a process, and resumed: same bytes as an undisturbed one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"
LLMC = Path(sys.executable).with_name("llmc")


def options(out):
    return ["compress", DEMO / "model", "-t", "hf", "--pass", "gptq:group_size=64", "-o", out,
            "--calibration", DEMO / "calibration.txt", "--samples", "4", "--length", "64",
            "--measure", "none"]  # fmt: skip


def words(out):
    return [LLMC, *options(out)]


def artifact_digest(run):
    return json.loads((run / "ledger.json").read_text())["artifact"]["digest"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    subprocess.run(words(out), check=True, capture_output=True)
    return out


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, whole, kind, llmc_until):
    broken = tmp_path / "broken"
    process = llmc_until("passes.gptq:GPTQ.quantize", 2, *options(broken))
    assert list(broken.glob("steps/.llmc-tmp-*"))
    process.send_signal(kind)
    _, err = process.communicate()

    assert not (broken / "artifact").exists()
    assert not (broken / "steps" / "01-gptq").exists()
    if kind != signal.SIGKILL:
        assert process.returncode == 4
        assert "--resume" in err
        assert "Traceback" not in err
        assert not list(broken.rglob(".llmc-tmp-*"))

    subprocess.run([*words(broken), "--resume"], check=True, capture_output=True)
    assert not list(broken.rglob(".llmc-tmp-*"))
    assert artifact_digest(broken) == artifact_digest(whole)
