"""Verbs that only read what was measured wait for no torch."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from compressor.cli import main
for words in (%s):
    try:
        main(words)
    except SystemExit as stop:
        print("code", stop.code)
print("imported", [name for name in ("torch", "transformers") if name in sys.modules])
"""


def shown(*requests):
    words = ", ".join(repr([str(word) for word in request]) for request in requests)
    done = subprocess.run([sys.executable, "-c", SCRIPT % f"{words},"], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("verb", [("gate", "--max-kl", 10), ("report",)], ids=lambda verb: verb[0])
def test_a_run_is_read_without_torch(run, verb):
    out = run()
    name, *words = verb
    said = shown((name, out, *words), (name, out / "nowhere", *words))
    assert "code 0" in said
    assert "code 2" in said
    assert said.strip().endswith("imported []")
