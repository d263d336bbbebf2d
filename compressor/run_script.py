"""`run.sh`: serves the artifact beside it, wherever the folder is moved to, or says what has to be installed first."""

from __future__ import annotations

import re
import shlex

from compressor.interpreter import SAFE_PATH

INSTALL = {  # what brings a program, or a module of Python
    "llama-server": "install llama.cpp, https://github.com/ggml-org/llama.cpp",
    "vllm": "pip install vllm",
    "trtllm-serve": "pip install tensorrt-llm",
    "text-generation-launcher": "install text-generation-inference, or serve the folder with vllm",
    "transformers": "pip install 'transformers[serving]'",
    "tensorrt_rtx": "install TensorRT-RTX, https://developer.nvidia.com/tensorrt-rtx",
    "onnxruntime_genai": "pip install onnxruntime-genai",
}
PYTHON = "python"
MODULE = re.compile(r"import (\w+)")


def run_script(command: str) -> str:
    """A shell script that runs a command in its own folder.

    Args:
        command: whose paths are relative to the folder. A `python` in it becomes the interpreter that has the module
            which the command imports first: $PYTHON, else python3 or python of the PATH.
    """
    words = shlex.split(command)
    program = next(word for word in words if word != "env" and "=" not in word)
    safe = " ".join(f"{name}={value}" for name, value in SAFE_PATH.items())
    head = f'#!/bin/sh\ncd "$(dirname "$0")" || exit\nexport {safe}\n'
    if program != PYTHON:
        missing = f"{program} is not installed: {INSTALL.get(program, 'install it')}"
        check = f"command -v {shlex.quote(program)} >/dev/null || {{ {_complaint(missing)}; exit 127; }}\n"
        return f"{head}{check}exec {command}\n"
    found = MODULE.search(command)
    assert found is not None, "the command imports what it needs"
    started = command.replace(f"{PYTHON} -c ", '"$python" -c ', 1)
    return f"{head}{_find_python(found[1])}exec {started}\n"


def _find_python(module: str) -> str:
    missing = f"No Python here has {module}: {INSTALL.get(module, 'install it')}. PYTHON=... says which one to take."
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    return (
        'for python in ${PYTHON:+"$PYTHON"} python3 python ""; do\n'
        f'  [ -z "$python" ] || "$python" -c "{look}" 2>/dev/null && break\n'
        f'done\n[ -n "$python" ] || {{ {_complaint(missing)}; exit 127; }}\n'
    )


def _complaint(sentence: str) -> str:
    return f"echo {shlex.quote(sentence)} >&2"
