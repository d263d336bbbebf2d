"""Makes the benchmarks' modules importable, which run as scripts, and gives them a peer that needs no environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

PEER = f"""
import shutil, sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS / "peers")!r})
import row

def load():
    def quantize(task):
        with task.model.with_name("calls").open("a") as calls:
            calls.write(task.options["name"] + "\\n")
        task.out.mkdir()
        if task.options.get("breaks"):
            sys.exit("it broke")
        shutil.copytree(task.model, task.out, dirs_exist_ok=True)
    return quantize

row.main(("numpy",), load)
"""


@pytest.fixture(autouse=True)
def folders_of_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find what lies beside them, whatever a call of the command line in this process has set."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)


@pytest.fixture
def copying_row(tmp_path: Path) -> Any:
    """`copying_row(name, **options) -> Row` whose tool copies the model, or breaks when told to."""
    from peer import Peer
    from rows import Row

    script = tmp_path / "copying_peer.py"
    script.write_text(PEER)

    def make(name: str, **options: Any) -> Row:
        return Row(name, "float", "copier", Peer(sys.prefix, str(script), ()), {"name": name, **options})

    return make
