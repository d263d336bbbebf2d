"""Artifacts of the demo model, which is trained, in real runtimes: they load, answer, and compute what is stored."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from compressor.audit import audit
from compressor.cli import main
from compressor.errors import RunError

DEMO = Path(__file__).parents[2] / "examples" / "demo"
QUESTION = "Which number comes after six?"
STATIC = ("--calibration", str(DEMO / "calibration.txt"), "--samples", "8", "--length", "128")
W8A8 = "rtn:bits=8,group_size=channel,activations="
FOR_VLLM = [
    ("vllm-int4", "rtn:group_size=64", ()),
    ("vllm-int4", "rtn:group_size=64,symmetric=false", ()),
    ("vllm-int8", f"{W8A8}dynamic", ()),
    ("vllm-int8", f"{W8A8}static", STATIC),
    ("vllm-fp8", "fp8", ()),
    ("gptq", "rtn:group_size=64", ()),
    ("awq", "rtn:group_size=64,symmetric=false", ()),
    ("hf", "rtn:group_size=64", ()),
]
KINDS = {"vllm-int8": "int8", "vllm-fp8": "fp8"}  # of weights, where they are not int4
FOR_LLAMA_CPP = [("gguf-q4_0", "rtn:group_size=64"), ("gguf-q8_0", "rtn:bits=8,group_size=32")]


def compared(run, capsys):
    """What `llmc compare` says of a run's runtimes."""
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--runtimes", str(run), "--text", str(DEMO / "evaluation.txt"), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0, found
    return found


def check_row(found, name):
    """The runtime agrees: it is as far from the weights as its rounding explains, which was tried."""
    (row,) = [row for row in found["runtimes"] if row["runtime"].startswith(name)]
    assert row["verdict"] == "agrees"
    assert row["difference"]["mean"] > 0
    assert row["control"]["mean"] > 0
    assert row["difference"]["top1"]["value"] > 0.9


@pytest.mark.parametrize(("target", "spec", "words"), FOR_VLLM)
def test_vllm_serves_and_computes_what_is_stored(engine, compress, capsys, target, spec, words):
    engine("vllm", KINDS.get(target, "int4"))
    check_row(compared(compress(target, spec, "--measure", "none", *words), capsys), "vLLM")


def test_vllm_answers_over_its_chat_endpoint_and_is_gone_after(engine, compress):
    from targets.engines.vllm_session import VllmSession

    engine("vllm")
    with closing(VllmSession(compress("vllm-int8", f"{W8A8}dynamic", "--measure", "none") / "artifact")) as session:
        assert session.chat(QUESTION, 4).strip().lower().startswith("seven")
        pid = session._process.process.pid
        prompt = np.array([[72, 483, 805, 266]])
        first = session.prefill(prompt)
        assert isinstance(session.decode(first), int)
        ((_, rows),) = session.logits(prompt[0])
        assert first == rows[-1].argmax()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(("target", "spec"), FOR_LLAMA_CPP)
def test_llama_cpp_loads_and_computes_what_is_stored(engine, compress, capsys, target, spec):
    engine("llama-cpp")
    check_row(compared(compress(target, spec, "--measure", "none"), capsys), "llama.cpp")


@pytest.mark.parametrize(
    ("name", "target", "spec"),
    [("vllm", "vllm-int8", f"{W8A8}dynamic"), ("llama-cpp", "gguf-q4_0", "rtn:group_size=32")],
)
def test_a_run_measures_its_artifact_in_its_runtime_and_verify_replays_it(engine, compress, name, target, spec):
    engine(name)
    words = ("--eval", str(DEMO / "evaluation.txt"), "--eval-length", "64", "--prompt", "16", "--output-tokens", "8")
    out = compress(target, spec, *words)
    step, shipped = json.loads((out / "ledger.json").read_text())["steps"][-2:]
    assert shipped["runtime"].startswith({"vllm": "vLLM", "llama-cpp": "llama.cpp"}[name])
    assert shipped["not_run"] is None
    assert shipped["quality"]["kl"]["value"] == pytest.approx(step["quality"]["kl"]["value"], abs=0.01)
    assert shipped["latency"][0]["itl_ms"]["p50"] > 0
    (generation,) = [c for c in audit(out / "artifact", lambda *_: None).checks if c.name == "generation"]
    assert generation.not_run is None
    assert generation.checked == 16
    assert generation.findings == []


def test_llama_cpp_keeps_its_cache_in_8_bits(engine, compress):
    engine("llama-cpp")
    words = ("--eval", str(DEMO / "evaluation.txt"), "--eval-length", "64", "--prompt", "16", "--output-tokens", "8")
    out = compress("gguf-q4_0:kv_cache=q8_0", "rtn:group_size=32", *words)
    plain, small = json.loads((out / "ledger.json").read_text())["steps"][-2:]
    assert [row["name"] for row in (plain, small)] == ["gguf-q4_0, f16 cache", "gguf-q4_0"]
    kl = [row["quality"]["kl"]["value"] for row in (plain, small)]
    assert kl[0] != kl[1], "another cache computes something else"
    assert kl[1] == pytest.approx(kl[0], abs=0.01)


def test_batches_and_long_texts_go_on_as_one_would(engine, compress):
    from targets.engines.llama_cpp_session import LlamaCppSession

    engine("llama-cpp")
    file = compress("gguf-q8_0", "rtn:bits=8,group_size=32", "--measure", "none") / "artifact" / "model.gguf"
    tokens = np.random.default_rng(0).integers(0, 1000, 600)  # more than a batch of the worker
    with closing(LlamaCppSession(file, 1024)) as session:
        alone = [session.prefill(tokens[None])]
        alone += [session.decode(alone[-1]) for _ in range(3)]
        rows = np.concatenate([rows for _, rows in session.logits(tokens)])
        assert rows.shape == (600, 1024)
        assert rows[-1].argmax() == alone[0]
        together = [session.prefill(np.stack([tokens, tokens[::-1]]))]
        together += [session.decode(together[-1]) for _ in range(1)]
        assert together[0] == alone[0]


def test_onnxruntime_genai_answers(compress):
    import onnxruntime_genai as genai

    artifact = compress("onnx-int4", "rtn:group_size=64", "--measure", "none") / "artifact"
    model = genai.Model(str(artifact))
    tokenizer = genai.Tokenizer(model)
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=40, do_sample=False)
    generator = genai.Generator(model, settings)
    prompt = tokenizer.encode(f"Question: {QUESTION}\nAnswer:")
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    assert tokenizer.decode(generator.get_sequence(0)[len(prompt) :]).strip().lower().startswith("seven")


def test_vllm_stops_on_a_step_that_only_llmc_opens(engine, compress):
    from targets.engines.vllm_session import VllmSession

    engine("vllm")
    words = ("--pass", "low-rank-correction:rank=8", *STATIC, "--measure", "none")
    step = compress("onnx-int4", "rtn:group_size=64", *words) / "steps" / "02-low-rank-correction"
    with pytest.raises(RunError, match="Unknown quantization method: llmc"):
        VllmSession(step)


def test_ctrl_c_ends_what_was_started(engine, compress):
    """The command line is interrupted while vLLM starts."""
    import signal
    import time

    engine("vllm")
    run = compress("vllm-int8", f"{W8A8}dynamic", "--measure", "none")
    words = ["compare", "--runtimes", run, "--text", DEMO / "evaluation.txt"]
    llmc = subprocess.Popen([Path(sys.executable).with_name("llmc"), *words], stderr=subprocess.PIPE, text=True)
    servers = []
    while not servers and llmc.poll() is None:
        time.sleep(0.2)
        servers = [
            child for child in psutil.Process(llmc.pid).children(recursive=True) if "api_server" in str(child.cmdline())
        ]
    os.kill(llmc.pid, signal.SIGINT)
    _, said = llmc.communicate(timeout=600)
    assert llmc.returncode == 4
    assert "Interrupted" in said
    assert psutil.wait_procs(servers, timeout=120)[1] == []
