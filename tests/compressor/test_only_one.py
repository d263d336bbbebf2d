import subprocess
import sys

import pytest

from compressor.errors import InputError
from compressor.only_one import LOCK_FILE, only_one

HOLDS = """
import sys, time
from pathlib import Path
from compressor.only_one import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at work in the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_and_a_killed_one_leaves_no_lock(tmp_path, holder):
    with pytest.raises(InputError, match="Another llmc is at work in"), only_one(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with only_one(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_resumed_while_it_goes_on(llmc, tiny_model, tmp_path, holder):
    words = ("compress", tiny_model("llama"), "-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none")
    code, _, err = llmc(*words, "-o", tmp_path, "--resume")
    assert code == 2
    assert f"Another llmc is at work in {tmp_path}." in err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), only_one(tmp_path):
        raise KeyError
    with only_one(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
