from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import process
import psutil
import pytest

from compressor.errors import RunError

MIB = 1 << 20


def test_memory_of_the_whole_tree_counts(tmp_path: Path) -> None:
    child = f"held = b'1' * {60 * MIB}; import time; time.sleep(1)"
    parent = f"import subprocess, sys; held = b'1' * {60 * MIB}; subprocess.run([sys.executable, '-c', {child!r}])"
    usage = process.measure([sys.executable, "-c", parent], tmp_path / "log", {})
    assert 120 * MIB < usage.peak_rss_bytes < 250 * MIB


def test_memory_that_a_fork_shares_counts_once(tmp_path: Path) -> None:
    forking = f"import os, time; held = b'1' * {100 * MIB}; pid = os.fork(); time.sleep(1); pid and os.waitpid(pid, 0)"
    usage = process.measure([sys.executable, "-c", forking], tmp_path / "log", {})
    assert 100 * MIB < usage.peak_rss_bytes < 150 * MIB


def test_memory_of_the_process_that_starts_it_does_not_count(tmp_path: Path) -> None:
    held = b"1" * (300 * MIB)
    usage = process.measure([sys.executable, "-c", "import time; time.sleep(0.4)"], tmp_path / "log", {})
    assert len(held) > usage.peak_rss_bytes > MIB


def test_cpu_time_of_children_counts(tmp_path: Path) -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    usage = process.measure([sys.executable, "-c", parent], tmp_path / "log", {})
    assert usage.cpu_s > 0.3
    assert usage.wall_s > 0.3


def test_environment_and_log(tmp_path: Path) -> None:
    process.measure([sys.executable, "-c", "import os; print(os.environ['SEEN'])"], tmp_path / "log", {"SEEN": "yes"})
    assert (tmp_path / "log").read_text() == "yes\n"


def test_a_failure_is_told_with_the_last_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ended with code 3: why it failed") as raised:
        process.measure([sys.executable, "-c", "print('why it failed'); raise SystemExit(3)"], tmp_path / "log", {})
    assert str(tmp_path / "log") in (raised.value.hint or "")


def test_an_interrupt_ends_the_whole_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def interrupt(*arguments: Any) -> Any:
        children = psutil.Process().children(recursive=True)
        if len(children) >= 2:
            started.extend(children)
            raise KeyboardInterrupt
        return select(*arguments)

    select = process.select.select
    monkeypatch.setattr(process.select, "select", interrupt)
    sleeper = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    with pytest.raises(KeyboardInterrupt):
        process.measure([sys.executable, "-c", parent], tmp_path / "log", {})
    _, alive = psutil.wait_procs(started, timeout=5)
    assert started
    assert not alive
