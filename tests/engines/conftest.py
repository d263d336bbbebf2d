"""The engines that `make engines` has made; a test of one that is not here is skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from passes.llmcompressor_engine import LLMCOMPRESSOR
from targets.engines import LLAMA_CPP, VLLM
from targets.engines.cpu_build import missing_kernel

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
ENGINES = {engine.name: engine for engine in (VLLM, LLAMA_CPP, LLMCOMPRESSOR)}
TEST_S = 3600  # of a test
os.environ.setdefault("LLMC_ENGINE_TIMEOUT", "1800")  # of the server of vLLM, which takes minutes on a busy machine


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.fixture(scope="session")
def engine(no_engines):
    """`engine(name, *kinds)`: looked for as a user's is, although other tests do without; it has to compute with these
    kinds of weights."""
    with pytest.MonkeyPatch.context() as patch:
        for one in ENGINES.values():
            patch.delenv(one.variable)

        def found(name, *kinds):
            reason = ENGINES[name].why_missing() or missing_kernel(kinds)
            return ENGINES[name] if reason is None else pytest.skip(reason)

        yield found


@pytest.fixture(scope="session")
def compress(tmp_path_factory, engine):
    """`compress(target, spec, *words)`: the folder of a run on the demo model, made once."""
    made = {}

    def run(target, spec, *words):
        key = target, spec, words
        if key not in made:
            out = tmp_path_factory.mktemp("run") / target.partition(":")[0]
            llmc = Path(sys.executable).with_name("llmc")
            command = [llmc, "compress", DEMO / "model", "-t", target, "--pass", spec, "-o", out, *words]
            subprocess.run(command, check=True, capture_output=True)
            made[key] = out
        return made[key]

    return run
