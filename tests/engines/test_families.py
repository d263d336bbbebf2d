"""Every family in llama.cpp: tiny random models compute there what transformers' code does, each trait of them too."""

from contextlib import closing

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.pass_ import PassContext
from compressor.registry import make_pass
from compressor.target import Artifact
from targets.gguf import GgufQ8

LENGTH = 200
NEAR = 0.005  # in nats: llama.cpp rounds activations to eight bits
TIMES = 20  # as far, at least, are models that lack a trait
GEMMA = {"query_pre_attn_scalar": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.5, 5.0, 8.0]}  # fmt: skip
LOCAL = {"rope_type": "default", "rope_theta": 5000.0}
GLOBAL = {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}
# family, settings, and settings that another model has, which llama.cpp must not have computed
CASES = [
    *((family, {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}})
      for family in ("llama", "mistral", "qwen2", "qwen3")),
    ("phi3", {}, {"partial_rotary_factor": 1.0}),
    ("phi3", {"original_max_position_embeddings": 256, "rope_parameters": LONGROPE},
     {"rope_parameters": LONGROPE | {"short_factor": LONGROPE["long_factor"]}}),
    ("gpt2", {}, {"num_attention_heads": 1}),
    ("gemma2", GEMMA, {"sliding_window": 512}),
    ("gemma2", GEMMA, {"attn_logit_softcapping": 50.0}),
    ("gemma2", GEMMA, {"final_logit_softcapping": 30.0}),
    ("gemma2", GEMMA | {"layer_types": ["sliding_attention"] * 2}, {"sliding_window": 16}),
    ("gemma3_text", GEMMA, {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3_text", GEMMA | {"rope_parameters": {"full_attention": GLOBAL, "sliding_attention": LOCAL}},
     {"rope_parameters": {"full_attention": LOCAL, "sliding_attention": LOCAL}}),
    ("gemma3_text", GEMMA | {"layer_types": ["full_attention"] * 2}, {"query_pre_attn_scalar": 32}),
]  # fmt: skip


@pytest.fixture(scope="session")
def byte_tokenizer():
    """With a merge, which llama.cpp wants to see."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {"th": 256}, merges=[("t", "h")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize(("family", "overrides", "other"), CASES)
def test_llama_cpp_computes_the_family(engine, tiny_model, tmp_path, family, overrides, other):
    engine("llama-cpp")
    checkpoint = rounded(tiny_model(family, **overrides), tmp_path / "step")
    target, out = GgufQ8(), tmp_path / "artifact"
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    out.mkdir()
    target.lower(checkpoint, out, lambda *_: None)
    tokens = torch.randint(0, 250, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with closing(target.open(Artifact(out, target.name))) as session:
        found = torch.from_numpy(np.concatenate([rows for _, rows in session.logits(tokens.numpy())]))
    near = divergence(logits_of(checkpoint, tokens), found)
    assert near < NEAR
    different = rounded(tiny_model(family, **overrides | other), tmp_path / "other")
    assert divergence(logits_of(different, tokens), found) > TIMES * near


def rounded(root, step) -> Checkpoint:
    context = PassContext(step, {}, None, 0, lambda *_: None, [])
    return make_pass("rtn", {"bits": 8, "group_size": 32}).apply(Checkpoint.open(root), context)


def logits_of(checkpoint, tokens):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(tokens.unsqueeze(0)), decoder.head())[0]


def divergence(logits, other) -> float:
    """KL divergence in nats a token."""
    expected, found = logits.log_softmax(-1), other.log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())
