import os
import stat

import pytest

from compressor import files
from compressor.files import TEMPORARY_PREFIX, whole_file, whole_folder, write_whole


@pytest.fixture
def events(monkeypatch):
    """What is written to the disk and what is renamed, in order, by inode."""
    seen = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.fstat(number).st_ino), fsync(number))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append("rename"), rename(a, b))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("rename"), rename(a, b))[1])
    return seen


def test_a_folder_is_on_the_disk_before_it_is_declared_whole(tmp_path, events):
    out = tmp_path / "out"
    with whole_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
    renamed = events.index("rename")
    assert {path.stat().st_ino for path in (out, out / "sub", out / "sub" / "a")} <= set(events[:renamed])
    assert tmp_path.stat().st_ino in events[renamed:]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, events):
    write_whole(tmp_path / "a", "text")
    assert events == [(tmp_path / "a").stat().st_ino, "rename", tmp_path.stat().st_ino]


def test_temporary_names_are_their_own_and_cannot_be_guessed(tmp_path, monkeypatch):
    with (
        whole_folder(tmp_path / "out") as first,
        whole_file(tmp_path / "a") as file,
        whole_file(tmp_path / "a") as other,
    ):
        file.write_text("first")
        other.write_text("second")
        assert len({first, file, other}) == 3
        assert all(path.name.startswith(TEMPORARY_PREFIX) and path.parent == tmp_path for path in (first, file, other))
    assert (tmp_path / "a").read_text() == "first"
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "guessed")
    trap = tmp_path / f"{TEMPORARY_PREFIX}guessed-b"
    trap.symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError), whole_file(tmp_path / "b"):
        pytest.fail("somebody else's file was opened")


def test_others_may_read_what_they_may_read_by_default(tmp_path):
    before = os.umask(0o022)
    try:
        with whole_folder(tmp_path / "out"):
            write_whole(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
