"""The command line in a test's own process leaves that process as it was."""

import signal

import pytest

import compressor.inspection as module
from compressor.interrupted import interrupted


@pytest.mark.parametrize("outcome", [pytest.fail, pytest.skip])
def test_what_pytest_raises_in_a_call_comes_through(llmc, tmp_path, monkeypatch, outcome):
    monkeypatch.setattr(module, "describe", lambda *_: outcome("Timeout (>300.0s) from pytest-timeout."))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(outcome.Exception, match="Timeout"):
        llmc("inspect", tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_one_call_and_no_other(llmc, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "describe", lambda *_: signal.raise_signal(kind))
    before = signal.getsignal(kind)
    code, _, err = llmc("inspect", tmp_path)
    assert (code, "Error: Interrupted." in err) == (4, True)
    assert signal.getsignal(kind) is before
    assert not interrupted.is_set()
