import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from compressor.errors import RunError
from targets.engines.process import EngineProcess

DIES = "import sys; print('loading'); sys.exit('ValueError: no kernel for int3')"
# Starts a process of its own, tells its number, and both wait.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
KILLED = """
import os, signal, sys
from targets.engines.process import EngineProcess
code = "print(1, flush=True); import time; time.sleep(60)"
process = EngineProcess("it", [sys.executable, "-c", code], {}, piped=True)
process.process.stdout.readline()
print(process.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def start(code, **options):
    return EngineProcess("the engine", [sys.executable, "-c", code], {}, **options)


def has_gone(pid):
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_an_end_is_told_with_the_line_that_says_most():
    process = start(DIES)
    error = process.death()
    assert str(error) == "the engine ended with code 1; it said: ValueError: no kernel for int3."


def test_a_line_that_points_to_another_is_not_the_one():
    said = [
        "AttributeError: no attribute 'cpu_gemm_wna16'",
        "EngineDeadError: See stack trace (above) for the root cause.",
    ]
    error = start(f"import sys; print({said[0]!r}); print({said[1]!r}); sys.exit(1)").death()
    assert str(error) == f"the engine ended with code 1; it said: {said[0]}."


def test_of_a_validation_error_the_reason_is_told():
    said = (
        "ValidationError: 1 validation error for ModelConfig\n  Value error, Unknown method: llmc.\n    For more see x"
    )
    error = start(f"import sys; print({said!r}); sys.exit(1)").death()
    assert str(error) == "the engine ended with code 1; it said: Value error, Unknown method: llmc."


def test_a_signal_is_told_by_its_name():
    process = start("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert "was ended by SIGILL" in str(process.death())


def test_what_it_started_ends_with_it():
    process = start(PARENT, piped=True)
    child = int(process.process.stdout.readline())
    assert psutil.pid_exists(child)
    process.close()
    assert has_gone(process.process.pid)
    assert has_gone(child)
    process.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child that its parent has died")
def test_it_ends_when_llmc_is_killed():
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert has_gone(int(done.stdout))


def test_what_cannot_be_started_is_one_sentence():
    with pytest.raises(RunError, match=r"the engine cannot be started \(No such file or directory: /no/such\)"):
        EngineProcess("the engine", ["/no/such"], {})


def test_its_environment_is_ours_and_more(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    process = EngineProcess(
        "it", [sys.executable, "-c", "import os; print(os.environ['A'], os.environ['PYTHONPATH'])"], {"A": "b"}, True
    )
    said = process.process.stdout.read().decode().split()
    process.close()
    assert said[0] == "b"
    assert said[1].endswith(f"site{os.pathsep}/somewhere")
