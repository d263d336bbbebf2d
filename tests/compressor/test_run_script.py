"""`run.sh` finds its program, or says what to install."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.run_script import run_script


@pytest.fixture
def run(tmp_path):
    """Run the script of a command with only these programs on the PATH, from another folder."""

    def start(command, programs, **environment):
        place, tools = tmp_path / "my run", tmp_path / "bin"
        place.mkdir()
        tools.mkdir()
        usual = {name: f'exec /usr/bin/{name} "$@"' for name in ("dirname", "env")}
        for name, text in {**usual, **programs}.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        (place / "run.sh").write_text(run_script(command))
        (place / "artifact").mkdir()
        words = ["/bin/sh", place / "run.sh"]
        return subprocess.run(
            words, cwd="/", env={"PATH": str(tools), **environment}, capture_output=True, text=True, check=False
        )

    return start


PYTHON = shlex.quote(sys.executable)
PRINT = "env A=1 python -c " + shlex.quote('import json; import os; print(os.environ["A"], os.path.isdir("artifact"))')


def test_a_program_runs_in_the_folder_of_the_script(run):
    done = run("serve artifact --port 1", {"serve": '[ -d "$1" ] && echo "$@"'})
    assert (done.returncode, done.stdout) == (0, "artifact --port 1\n")


def test_a_missing_program_is_named_with_what_brings_it(run):
    done = run("vllm serve artifact", {})
    assert (done.returncode, done.stderr) == (127, "vllm is not installed: pip install vllm\n")


@pytest.mark.parametrize("name", ["python", "python3"])
def test_the_python_that_has_the_module_is_taken(run, name):
    other = "python3" if name == "python" else "python"
    done = run(PRINT, {name: f'exec {PYTHON} "$@"', other: "exit 1"})
    assert (done.returncode, done.stdout) == (0, "1 True\n"), done.stderr


def test_the_user_says_which_python(run):
    done = run(PRINT, {"python3": "exit 1"}, PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, "1 True\n"), done.stderr


def test_without_the_module_it_says_what_to_install(run):
    command = "python -c 'import onnxruntime_genai as og'"
    done = run(command, {"python3": "exit 1", "python": "exit 1"})
    assert done.returncode == 127
    assert done.stderr.startswith("No Python here has onnxruntime_genai: pip install onnxruntime-genai.")


def test_no_script_holds_a_path_of_this_machine(llmc, tiny_model, tmp_path):
    words = ("-t", "onnx-int4", "--pass", "rtn:group_size=32", "--measure", "none", "-o", tmp_path / "out")
    assert llmc("compress", tiny_model("llama"), *words)[0] == 0
    assert str(tmp_path) not in (tmp_path / "out" / "run.sh").read_text()
    assert str(Path(sys.executable).parent) not in (tmp_path / "out" / "run.sh").read_text()
