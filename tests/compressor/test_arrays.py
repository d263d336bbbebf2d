import errno
import os

import numpy as np
import pytest

from compressor.arrays import new_array
from compressor.files import is_disk_full


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_its_room_is_on_the_disk_before_it_is_written_to(tmp_path, monkeypatch, has_fallocate):
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    array = new_array(tmp_path / "a.npy", np.float32, (700, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes
    assert not array.any()
    array[-1, -1] = 5
    array.flush()
    assert np.load(tmp_path / "a.npy")[-1, -1] == 5


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has none")
def test_a_full_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        new_array(tmp_path / "a.npy", np.float32, (8,))
    assert is_disk_full(caught.value)
