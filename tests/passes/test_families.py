"""Passes on the later families: what a step computes is what transformers computes from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, attention_implementation
from compressor.pass_ import PassContext
from compressor.registry import make_pass, parse_spec

TOKENS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))
SPECS = [
    "rtn:group_size=32",
    "gptq:group_size=32,lm_head=8",
    "gptq:bits=8,group_size=channel,activations=static",
    "mixed:group_size=32,windows=4",
    "tune:group_size=32,iterations=2",
    "fp8:activations=static,scales=tensor,kv_cache=true",
    "embeddings",
    "nvfp4:activations=static",
]


def applied(spec, root, out):
    one, checkpoint = make_pass(*parse_spec(spec)), Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    step = one.apply(checkpoint, PassContext(Path(out), {}, TOKENS, 0, lambda *_: None, []))
    assert step.schemes.keys() - {"lm_head"} == planned.keys() - {"lm_head"}
    return step


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3", "gpt2"])
def test_a_step_is_near_its_original_and_computes_what_transformers_does(tiny_model, tmp_path, family, spec):
    from transformers import AutoModelForCausalLM

    root = tiny_model(family)
    step, before = applied(spec, root, tmp_path / "step"), logits(Checkpoint.open(root))
    found = logits(step)
    assert 0 < (found - before).norm() / before.norm() < 0.7
    computes_alike = not step.kv_cache and not step.architecture.transposed
    if computes_alike and not any(scheme.activations for scheme in step.schemes.values()):
        attention = attention_implementation(step.architecture)
        model = AutoModelForCausalLM.from_pretrained(step.root, attn_implementation=attention)
        torch.testing.assert_close(model(TOKENS[:2]).logits, found, atol=1e-3, rtol=1e-3)
