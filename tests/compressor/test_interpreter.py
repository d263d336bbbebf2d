import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compressor import engine
from compressor.bench.peak import peak_memory
from compressor.errors import RunError
from compressor.interpreter import safe_environment
from compressor.measure.latency import Workload
from targets.engines.process import EngineProcess

ROOT = Path(engine.__file__).parents[1]
ASKS = "import csv, json; print(csv.__file__)"
# What a runtime does: it starts an interpreter of its own.
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASKS!r}], check=True)"


@pytest.fixture
def there(hostile_folder, monkeypatch):
    """The hostile folder, as the current one."""
    monkeypatch.chdir(hostile_folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # which a call of the command line in this process sets
    return hostile_folder


def test_the_folder_is_hostile(tmp_path, there):
    done = subprocess.run([sys.executable, "-c", ASKS], check=False, capture_output=True)
    assert done.returncode == 1
    assert (there / "ran").exists()
    (there / "ran").unlink()


def test_an_engine_is_asked_for_its_version(there):
    assert engine._ask(Path(sys.executable), ("click",))[0] == "click"


@pytest.mark.parametrize("words", [("-c", ASKS), ("-c", STARTS), ("-m", "platform")])
def test_the_process_of_an_engine(words, there):
    process = EngineProcess("it", [sys.executable, *words], {}, piped=True)
    assert process.process.stdout.read()
    assert process.process.wait() == 0
    process.close()


def test_the_process_that_measures_memory(there):
    with pytest.raises(RunError, match=r"its memory could not be measured: .*nothing-here"):
        peak_memory(there / "nothing-here", Workload(1, 8, 2, 2))


def test_an_empty_part_of_pythonpath_is_the_current_folder_too(monkeypatch, there):
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/somewhere{os.pathsep}")
    assert safe_environment()["PYTHONPATH"] == "/somewhere"
    assert subprocess.run([sys.executable, "-c", ASKS], env=safe_environment(), check=False).returncode == 0
    monkeypatch.setenv("PYTHONPATH", "")
    assert "PYTHONPATH" not in safe_environment()


def test_what_libraries_start_inherits_it_from_the_command_line(there):
    code = f"from compressor.cli import main\ntry: main(['--version'])\nexcept SystemExit: {STARTS}"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_every_process_is_started_with_it():
    for folder in ("compressor", "passes", "targets", "calibration"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in _starts(ast.parse(path.read_text())):
                given = next((word.value for word in call.keywords if word.arg == "env"), None)
                assert given is not None and "safe_environment" in ast.unparse(given), f"{path}:{call.lineno}"


def _starts(tree):
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    starters = ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "os.system")
    return [call for call in calls if ast.unparse(call.func) in starters]
