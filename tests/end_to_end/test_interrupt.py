"""A run that is really interrupted, as a process, and resumed: same bytes as an undisturbed one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"
LLMC = Path(sys.executable).with_name("llmc")


def words(out):
    return [LLMC, "compress", DEMO / "model", "-t", "hf", "--pass", "gptq:group_size=64", "-o", out,
            "--calibration", DEMO / "calibration.txt", "--samples", "32", "--length", "256",
            "--measure", "none"]  # fmt: skip


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, kind):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(words(whole), check=True, capture_output=True)

    process = subprocess.Popen(words(broken), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(broken.glob("steps/.llmc-tmp-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)

    assert not (broken / "artifact").exists()
    assert not (broken / "steps" / "01-gptq").exists()
    if kind != signal.SIGKILL:
        assert process.returncode == 4
        assert "--resume" in err
        assert "Traceback" not in err
        assert not list(broken.rglob(".llmc-tmp-*"))

    subprocess.run([*words(broken), "--resume"], check=True, capture_output=True)
    assert not list(broken.rglob(".llmc-tmp-*"))
    digests = [json.loads((out / "ledger.json").read_text())["artifact"]["digest"] for out in (whole, broken)]
    assert digests[0] == digests[1]
