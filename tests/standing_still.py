"""`llmc` as a process that stands still at a named call, so that a test can interrupt it there on any machine.

    python tests/standing_still.py passes.gptq:GPTQ.quantize 2 compress MODEL ...

Before the second call of that method it prints SIGN and waits.
"""

import sys
import time
from importlib import import_module

SIGN = "standing still"


def main(place: str, number: str, *words: str) -> None:
    """Run `llmc` with these words up to the call."""
    from compressor.cli import main as llmc

    module, method = place.split(":")
    owner_name, name = method.split(".")
    owner = getattr(import_module(module), owner_name)
    original, calls = getattr(owner, name), 0

    def standing_still(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == int(number):
            print(SIGN, flush=True)  # noqa: T201  told to the test
            time.sleep(600)
        return original(*args, **kwargs)

    setattr(owner, name, standing_still)
    sys.argv[1:] = words
    llmc()


if __name__ == "__main__":
    main(*sys.argv[1:])
