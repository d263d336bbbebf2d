"""What the ledger says of the machine."""

import pytest

from compressor import environment as module
from compressor.environment import environment

X86 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_tile\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("told", "cpu"),
    [
        (X86, "A CPU (AVX2, AVX512, VNNI, AMX)"),
        ("model name\t: A CPU\n", "A CPU"),
        (ARM, "aarch64 (NEON, dot products)"),
    ],
    ids=["x86", "no flags", "arm"],
)
def test_the_processor_is_told_with_its_instructions(tmp_path, monkeypatch, told, cpu):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert environment()["cpu"] == cpu


def test_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert environment()["cpu"] == "arm"


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert list(environment()["packages"]) == ["torch"]
