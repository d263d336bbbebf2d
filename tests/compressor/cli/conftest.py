"""The command line as a fixture."""

from collections.abc import Callable

import pytest

from compressor.cli import main


@pytest.fixture
def llmc(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; returns (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return stop.value.code, captured.out, captured.err

    return run
