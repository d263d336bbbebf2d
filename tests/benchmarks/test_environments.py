from __future__ import annotations

import sys
import venv
from pathlib import Path

import environments
import pytest
from environments import UNFINISHED, Environment, is_whole


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment in a checkout of its own, for which nothing is installed; its check tells that it ran."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(environments, "BENCHMARKS", tmp_path / "benchmarks")
    return Environment("tiny", (), f"open({str(tmp_path / 'checked')!r}, 'w')")


def test_it_is_made_once(tiny: Environment, tmp_path: Path) -> None:
    tiny.make()
    assert is_whole(tiny.root)
    (tmp_path / "checked").unlink()
    tiny.make()
    assert not (tmp_path / "checked").exists()


def test_a_link_to_an_environment_is_one(tiny: Environment, tmp_path: Path) -> None:
    venv.create(tmp_path / "elsewhere", with_pip=False)
    tiny.root.symlink_to(tmp_path / "elsewhere")
    tiny.make()
    assert tiny.root.is_symlink()
    assert not (tmp_path / "checked").exists()


def test_nothing_is_made_behind_a_link_to_nothing(tiny: Environment, tmp_path: Path) -> None:
    tiny.root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="elsewhere, where no environment is"):
        tiny.make()
    assert not (tmp_path / "elsewhere").exists()


def test_what_a_killed_process_left_is_made_anew(tiny: Environment, tmp_path: Path) -> None:
    venv.create(tiny.root, with_pip=False)
    (tiny.root / UNFINISHED).touch()
    assert not is_whole(tiny.root)
    tiny.make()
    assert is_whole(tiny.root)
    assert (tmp_path / "checked").exists()


def test_one_that_fails_its_check_is_removed(tiny: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(environments.subprocess.CalledProcessError):
        Environment("tiny", (), "raise SystemExit('not whole')").make()
    assert "not whole" in capfd.readouterr().err
    assert not tiny.root.exists()


def test_the_command_says_what_is_there(
    tiny: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    venv.create(tiny.root, with_pip=False)
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"tiny": tiny})
    monkeypatch.setattr(sys, "argv", ["environments.py", "tiny"])
    assert environments.main() == 0
    assert capsys.readouterr().out == "tiny: is there\n"
