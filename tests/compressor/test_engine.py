import os
import sys

import pytest

from compressor import engine as module
from compressor.engine import Engine, choose
from compressor.errors import InputError

ENGINE = Engine("some-engine", ("somengine", "somengine-cpu"), has_server=True)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """`environment(distribution, version)`: a virtual environment that has it."""
    monkeypatch.setattr(module, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.delenv(ENGINE.variable, raising=False)

    def make(distribution, version, root=tmp_path / "env"):
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "python").symlink_to(sys.executable)
        (root / "pyvenv.cfg").write_text(f"home = {sys.base_exec_prefix}/bin\n")
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        info = root / "lib" / name / "site-packages" / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        return root

    return make


def test_it_is_found_where_make_engines_puts_it(environment, tmp_path):
    assert "make engines" in ENGINE.why_missing()
    root = environment("somengine-cpu", "0.32", tmp_path / "checkout" / ".venv-some-engine")
    assert ENGINE.why_missing() is None
    assert ENGINE.place().python == root / "bin" / "python"
    assert str(ENGINE.place()).startswith("somengine-cpu 0.32, ")


def test_the_environment_variable_wins(environment, tmp_path, monkeypatch):
    environment("somengine", "1", tmp_path / "checkout" / ".venv-some-engine")
    root = environment("somengine", "2")
    assert ENGINE.place().version == "1"
    for place in (root, root / "bin" / "python"):
        monkeypatch.setenv("LLMC_ENGINE_SOME_ENGINE", str(place))
        assert ENGINE.place().version == "2"
    monkeypatch.setenv("LLMC_ENGINE_SOME_ENGINE", "none")
    assert ENGINE.why_missing() == "some-engine is switched off"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("nowhere", "is no Python environment"), ("https://host:8000/", None), (sys.executable, "has no somengine")],
)
def test_what_is_given_is_checked(environment, monkeypatch, given, sentence):
    monkeypatch.setenv(ENGINE.variable, given)
    if sentence is None:
        assert ENGINE.place().url == "https://host:8000"
        assert "URL" in Engine("other", ("other",))._given(given)
        return
    assert sentence in ENGINE.why_missing()
    with pytest.raises(InputError, match=sentence):
        ENGINE.place()


def test_an_interpreter_that_does_not_run_is_no_environment(environment, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv(ENGINE.variable, str(broken))
    assert "has no somengine" in ENGINE.why_missing()


def test_the_command_line_sets_it_for_what_is_started_too(environment, monkeypatch):
    monkeypatch.setenv(ENGINE.variable, "before")  # so that it is taken back after the test
    root = environment("somengine", "2")
    choose([f"some-engine={root}"], [ENGINE])
    assert os.environ[ENGINE.variable] == str(root)
    choose(["some-engine=none"], [ENGINE])
    assert ENGINE.why_missing() == "some-engine is switched off"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("some-engin=/x", "did you mean 'some-engine'"),
        ("some-engine", "says no place"),
        ("some-engine=/x", "no Python environment"),
    ],
)
def test_a_wrong_option_is_refused(monkeypatch, given, sentence):
    monkeypatch.setenv(ENGINE.variable, "before")
    with pytest.raises(InputError, match=sentence):
        choose([given], [ENGINE])
