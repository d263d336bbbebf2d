"""The folder of what a bisection tries: when it stays, and whose it is."""

import pytest

from compressor.bisect.kept import FOLDER, workplace
from compressor.errors import InputError, Interrupted


@pytest.mark.parametrize(
    ("error", "stays"), [(None, False), (InputError, False), (Interrupted, False), (OSError, True)]
)
def test_it_stays_where_the_same_command_may_go_on(tmp_path, error, stays):
    def use():
        with workplace(tmp_path) as folder:
            (folder / "trial").touch()
            if error is not None:
                raise error("stopped")

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert (tmp_path / FOLDER / "trial").exists() == stays


def test_two_at_once_are_refused(tmp_path):
    with workplace(tmp_path) as folder:
        (folder / "trial").touch()
        with pytest.raises(InputError, match="Another llmc is at work in"), workplace(tmp_path):
            pass
        assert (folder / "trial").exists()
    with workplace(tmp_path):
        pass
