"""What vLLM's build for the CPU has no kernels for is told, and no server is started for it."""

import json
import shutil

import pytest
import torch

from compressor.errors import RunError
from compressor.probe import open_session
from compressor.registry import make_target
from compressor.target import Artifact
from targets.engines import VLLM, cpu_build
from targets.vllm import VllmInt4

NO_AVX512 = "vLLM's build for the CPU has int4 kernels for AVX512 only, which this processor lacks"


@pytest.fixture
def on(monkeypatch, environment):
    """`on(machine, units)`: as if this were such a processor, beside an environment with a build for the CPU."""
    monkeypatch.undo()
    monkeypatch.setenv(VLLM.variable, str(environment))

    def be(machine, units):
        monkeypatch.setattr(cpu_build.platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: units)

    return be


@pytest.mark.parametrize(
    ("machine", "units", "reason"),
    [("x86_64", "AVX2", NO_AVX512), ("x86_64", "AVX512", None), ("aarch64", "DEFAULT", None)],
)
def test_int4_wants_avx512_of_x86(on, machine, units, reason):
    on(machine, units)
    assert {name: make_target(name, {}).why_not_run() for name in ("vllm-int4", "gptq", "awq")} == dict.fromkeys(
        ("vllm-int4", "gptq", "awq"), reason
    )
    assert [make_target(name, {}).why_not_run() for name in ("vllm-int8", "vllm-fp8")] == [None, None]
    assert "NVFP4" in make_target("vllm-nvfp4", {}).why_not_run()


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("units", ["AVX2", "AVX512"])
def test_an_fp8_cache_wants_it_too(on, tiny_model, tmp_path, units, has_cache):
    root = tmp_path / "artifact"
    shutil.copytree(tiny_model("llama"), root)
    scales = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    quantized = {"quant_method": "compressed-tensors", "config_groups": {}}
    quantized |= {"kv_cache_scheme": scales} if has_cache else {}
    config = json.loads((root / "config.json").read_text()) | {"quantization_config": quantized}
    (root / "config.json").write_text(json.dumps(config))
    on("x86_64", units)
    (runtime,) = make_target("vllm-fp8", {}).runtimes(Artifact(root, "vllm-fp8"))
    lacking = "vLLM's build for the CPU keeps an fp8 cache with AVX512 only, which this processor lacks"
    assert runtime.why_not == (lacking if has_cache and units == "AVX2" else None)


def test_another_server_may_have_a_gpu(on, monkeypatch):
    on("x86_64", "AVX2")
    monkeypatch.setenv(VLLM.variable, "http://127.0.0.1:1")
    assert make_target("vllm-int4", {}).why_not_run() is None


def test_nothing_is_opened(on, tmp_path):
    on("x86_64", "AVX2")
    with pytest.raises(RunError, match="AVX512 only"):
        open_session(VllmInt4(), Artifact(tmp_path, "vllm-int4"))


def test_compare_says_that_it_was_not_run(on, environment, tiny_model, llmc, tmp_path):
    on("x86_64", "AVX2")
    text = tmp_path / "text.txt"
    text.write_text("The old mill turns by the river. " * 6)
    for target in ("vllm-int4", "hf"):
        out = tmp_path / target
        words = ("-t", target, "--pass", "rtn:group_size=32", "--measure", "none", "-o", out)
        assert llmc("compress", tiny_model("llama"), *words)[0] == 0
        code, said, _ = llmc("compare", "--runtimes", out, "--text", text, "--length", 32)
        assert code == 0
        assert NO_AVX512 in said
