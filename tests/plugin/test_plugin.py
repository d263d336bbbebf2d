"""A pass from another distribution is found by its entry point and used like a built-in one."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from compressor import registry
from compressor.errors import InputError

PLUGIN = Path(__file__).parent / "llmc_half_scale"
LLMC = Path(sys.executable).with_name("llmc")


@pytest.fixture
def installed(tmp_path):
    """The environment of a process in which the plug-in is installed: its module and its metadata on the path."""
    site = tmp_path / "site"
    metadata = site / "llmc_half_scale-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "half_scale.py").write_text((PLUGIN / "half_scale.py").read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: llmc-half-scale\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[llmc.passes]\nhalf-scale = half_scale:HalfScale\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def test_it_is_listed_and_runs(installed, tiny_model, tmp_path):
    listed = subprocess.run([LLMC, "passes", "--json"], env=installed, capture_output=True, text=True, check=True)
    assert "half-scale" in [entry["name"] for entry in json.loads(listed.stdout)]
    out = tmp_path / "out"
    words = [LLMC, "compress", tiny_model("llama"), "-t", "hf", "--pass", "half-scale:factor=0.25",
             "--pass", "rtn:group_size=32", "-o", out, "--measure", "none"]  # fmt: skip
    subprocess.run(words, env=installed, check=True, capture_output=True)
    assert sorted(path.name for path in (out / "steps").iterdir()) == ["01-half-scale", "02-rtn"]


def test_the_example_in_the_contributing_guide_is_this_plugin():
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = (PLUGIN / "half_scale.py").read_text().split('"""', 2)[2].strip()
    assert code in guide


def test_two_owners_of_one_name_are_both_named(monkeypatch):
    twins = [EntryPoint("rtn", f"{module}:RTN", registry.PASSES) for module in ("passes.rtn", "other.rtn")]
    monkeypatch.setattr(registry, "entry_points", lambda group: twins)
    registry.names.cache_clear()
    try:
        with pytest.raises(InputError, match=r"registered twice.*passes\.rtn:RTN.*other\.rtn:RTN"):
            registry.names(registry.PASSES)
    finally:
        registry.names.cache_clear()
