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
from targets.onnx.special_tokens import SpecialTokens
from targets.onnx.target import OnnxFp16, OnnxFp32, OnnxInt4

EMBEDDING = "model.embed_tokens"

og = pytest.importorskip("onnxruntime_genai")

PROMPTS = ("Once upon a time", "Hello")
NEW_TOKENS = 12
PAD = 258
CACHE = Cache(torch.float32, is_shared=True)
TOKENS = SpecialTokens(256, (257,), PAD)


def genai_greedy(root, prompts: list[list[int]], length: int, pad: int = PAD) -> list[list[int]]:
    model = og.Model(str(root))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length, batch_size=len(prompts), do_sample=False)
    generator = og.Generator(model, parameters)
    widest = max(map(len, prompts))
    generator.append_tokens(np.array([prompt + [pad] * (widest - len(prompt)) for prompt in prompts], np.int32))
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


@pytest.mark.parametrize("named", [None, 257], ids=["no padding token", "padding ends a text"])
def test_a_batch_keeps_tokens_that_end_a_text(tiny_model, recast, lower, reference, byte_tokenizer, named):
    """A chat has them in the middle, and genai leaves out padding wherever it stands."""
    root = recast(tiny_model("llama"), torch.float32)
    byte_tokenizer.__class__.from_pretrained(root, pad_token=None).save_pretrained(root)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(values | {"pad_token_id": named}))
    (artifact, notes), model = lower(OnnxFp32(), Checkpoint.open(root)), reference(Checkpoint.open(root))
    pad = config_of(artifact)["model"]["pad_token_id"]
    assert pad == 259  # the first row without a token
    assert any("batches of onnxruntime-genai" in note and "(259)" in note for note in notes)
    prompts = [[*byte_tokenizer.encode("Hello"), 257, *byte_tokenizer.encode("Hi")], byte_tokenizer.encode("Once upon")]
    widest = max(map(len, prompts))
    rows = genai_greedy(artifact.root, prompts, widest + NEW_TOKENS, pad)
    for prompt, row in zip(prompts, rows, strict=True):
        assert row[widest:] == transformers_greedy(model, prompt, NEW_TOKENS)


def test_padding_of_a_full_vocabulary(tiny_model, byte_tokenizer):
    """The unknown token, else a special one that no chat has, else there is none."""
    root, copy = tiny_model("llama"), byte_tokenizer.__class__.from_pretrained(tiny_model("llama"))
    copy.pad_token = None  # its token stays, and is special
    assert SpecialTokens.of(root, copy, 259).padding == 258
    copy.chat_template += "<|pad|>"
    assert SpecialTokens.of(root, copy, 257).padding == 258  # as config.json names it


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


def test_special_tokens_and_search(tiny_model, lower, recast):
    root = recast(tiny_model("llama"), torch.float32)
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": [1, 2]}
    (root / "generation_config.json").write_text(json.dumps(generation))
    config = config_of(lower(OnnxFp32(), Checkpoint.open(root))[0])
    assert config["model"]["eos_token_id"] == [1, 2]  # as transformers: the tokenizer's own is not among them
    assert (config["model"]["bos_token_id"], config["model"]["pad_token_id"]) == (256, 258)
    search = config["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"], search["top_p"]) == (True, 0.7, 20, 1.0)
    assert search["max_length"] == 512


def test_a_long_context_does_not_allocate_its_whole_cache(tiny_model, tmp_path):
    root = tiny_model("llama")
    architecture = Checkpoint.open(root).architecture
    shares = []
    for positions in (512, 3 << 20):
        write_config(root, replace(architecture, max_positions=positions), TOKENS, tmp_path, CACHE, {})
        shares.append(json.loads((tmp_path / "genai_config.json").read_text())["search"]["past_present_share_buffer"])
    assert shares == [True, False]


def test_tokens_that_the_model_does_not_name():
    assert SpecialTokens(None, (), 0).entries() == {"eos_token_id": [], "pad_token_id": 0}
