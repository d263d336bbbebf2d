"""The artifact runs in onnxruntime-genai as it is, and says what transformers says."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.families import FAMILIES
from compressor.quantized import Scheme
from targets.onnx.genai import Cache, write_config
from targets.onnx.target import OnnxFp16, OnnxFp32, OnnxInt4

EMBEDDING = "model.embed_tokens"

og = pytest.importorskip("onnxruntime_genai")

PROMPTS = ("Once upon a time", "Hello")
NEW_TOKENS = 12
PAD = 258
CACHE = Cache(torch.float32, is_shared=True)


def genai_greedy(root, prompts: list[list[int]], length: int) -> list[list[int]]:
    model = og.Model(str(root))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length, batch_size=len(prompts), do_sample=False)
    generator = og.Generator(model, parameters)
    widest = max(map(len, prompts))
    generator.append_tokens(np.array([prompt + [PAD] * (widest - len(prompt)) for prompt in prompts], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [list(generator.get_sequence(row)) for row in range(len(prompts))]


def transformers_greedy(model, prompt: list[int], steps: int) -> list[int]:
    tokens = torch.tensor(prompt)[None]
    output = model.generate(tokens, max_new_tokens=steps, do_sample=False, pad_token_id=PAD)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_transformers(tiny_model, quantize, lower, reference, byte_tokenizer, family):
    overrides = {"sliding_window": 9} if family == "mistral" else {}
    checkpoint = quantize(tiny_model(family, **overrides), Scheme(4, 32))
    artifact, _ = lower(OnnxInt4(accuracy_level=0), checkpoint)
    prompt = byte_tokenizer.encode(PROMPTS[0])
    assert og.Tokenizer(og.Model(str(artifact.root))).encode(PROMPTS[0]).tolist() == prompt
    sequence = genai_greedy(artifact.root, [prompt], len(prompt) + NEW_TOKENS)[0]
    assert sequence[len(prompt) :] == transformers_greedy(reference(checkpoint), prompt, NEW_TOKENS)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_greedy_text_with_an_int8_embedding(tiny_model, quantize, lower, reference, byte_tokenizer, tied):
    quantized = {EMBEDDING: Scheme(8, None, table=True)} | ({} if tied else {"lm_head": Scheme(4, 32)})
    checkpoint = quantize(tiny_model("llama", tied), Scheme(4, 32), quantized)
    artifact, _ = lower(OnnxInt4(accuracy_level=0), checkpoint)
    prompt = byte_tokenizer.encode(PROMPTS[0])
    sequence = genai_greedy(artifact.root, [prompt], len(prompt) + NEW_TOKENS)[0]
    assert sequence[len(prompt) :] == transformers_greedy(reference(checkpoint), prompt, NEW_TOKENS)


@pytest.mark.parametrize("target", [OnnxFp32(), OnnxFp16()], ids=lambda target: target.name)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_text_of_a_16_bit_checkpoint(tiny_model, recast, lower, reference, byte_tokenizer, family, target):
    checkpoint = Checkpoint.open(recast(tiny_model(family), torch.bfloat16))
    artifact, _ = lower(target, checkpoint)
    prompt = byte_tokenizer.encode(PROMPTS[0])
    sequence = genai_greedy(artifact.root, [prompt], len(prompt) + NEW_TOKENS)[0]
    assert sequence[len(prompt) :] == transformers_greedy(reference(checkpoint), prompt, NEW_TOKENS)


def test_rows_of_different_length(tiny_model, lower, reference, byte_tokenizer):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    (artifact, _), model = lower(OnnxFp32(), checkpoint), reference(checkpoint)
    prompts = [byte_tokenizer.encode(prompt) for prompt in PROMPTS]
    widest = max(map(len, prompts))
    for prompt, row in zip(prompts, genai_greedy(artifact.root, prompts, widest + NEW_TOKENS), strict=True):
        assert row[widest:] == transformers_greedy(model, prompt, NEW_TOKENS)


def test_run_command_runs(tiny_model, lower, hostile_folder):
    artifact, _ = lower(OnnxFp32(), Checkpoint.open(tiny_model("llama")))
    command = shlex.split(OnnxFp32().run_command(str(artifact.root), {}))
    assert command[:4] == ["env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1", "PYTHONSAFEPATH=1", "python"]
    words = [*command[:3], sys.executable, *command[4:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=hostile_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")


def config_of(artifact) -> dict:
    return json.loads((artifact.root / "genai_config.json").read_text())


def test_special_tokens_and_search(tiny_model, lower):
    root = tiny_model("llama")
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": [1, 2]}
    (root / "generation_config.json").write_text(json.dumps(generation))
    config = config_of(lower(OnnxFp32(), Checkpoint.open(root))[0])
    assert config["model"]["eos_token_id"] == [257, 1, 2]  # the tokenizer's own end of turn is added
    assert (config["model"]["bos_token_id"], config["model"]["pad_token_id"]) == (256, 258)
    search = config["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"], search["top_p"]) == (True, 0.7, 20, 1.0)
    assert search["max_length"] == 512


def test_a_long_context_does_not_allocate_its_whole_cache(tiny_model, tmp_path):
    root = tiny_model("llama")
    architecture = Checkpoint.open(root).architecture
    shares = []
    for positions in (512, 3 << 20):
        write_config(root, {}, replace(architecture, max_positions=positions), tmp_path, CACHE, {})
        shares.append(json.loads((tmp_path / "genai_config.json").read_text())["search"]["past_present_share_buffer"])
    assert shares == [True, False]


def test_a_folder_without_special_tokens(tiny_model, tmp_path):
    root = tiny_model("llama")
    architecture = Checkpoint.open(root).architecture
    (tmp_path / "bare").mkdir()
    write_config(tmp_path / "bare", {}, architecture, tmp_path, CACHE, {})
    model = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [], 0)
