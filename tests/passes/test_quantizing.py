import re
from pathlib import Path

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec

TOKENS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))


def run(spec, root, out):
    one = make_pass(*parse_spec(spec))
    checkpoint = Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    notes: list[str] = []
    result = one.apply(checkpoint, PassContext(Path(out), {"key": "k"}, TOKENS, 0, lambda *_: None, notes))
    assert dict(result.schemes) == planned, "the plan is what is done"
    return result


@pytest.mark.parametrize("name", ["rtn", "gptq"])
@pytest.mark.parametrize(
    "options", ["bits=4,group_size=32", "bits=8,group_size=64", "group_size=channel,symmetric=false"]
)
def test_the_step_opens_in_transformers_with_equal_logits(tiny_model, tmp_path, name, options):
    from transformers import AutoModelForCausalLM

    result = run(f"{name}:{options}", tiny_model("llama"), tmp_path / "step")
    model = AutoModelForCausalLM.from_pretrained(result.root)
    decoder = Decoder(result)
    ours = decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())
    torch.testing.assert_close(model(TOKENS[:2]).logits, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_is_quantized_whole_and_lm_head_kept(tiny_model, tmp_path, family, tied):
    from transformers import AutoModelForCausalLM

    result = run("gptq:group_size=32", tiny_model(family, tied=tied), tmp_path / "step")
    assert set(result.schemes) == set(result.architecture.linears()) - {"lm_head"}
    decoder = Decoder(result)
    ours = decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())
    model = AutoModelForCausalLM.from_pretrained(result.root)
    torch.testing.assert_close(model(TOKENS[:2]).logits, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_a_tied_lm_head_is_untied_and_the_embedding_stays(tiny_model, tmp_path, name):
    root = tiny_model("llama", tied=True)
    before = Checkpoint.open(root).read(["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    result = run(f"{name}:group_size=32,lm_head=true", root, tmp_path / "step")
    assert not result.architecture.tied_embeddings
    weights = result.read(["model.embed_tokens.weight", "lm_head.weight"])
    assert torch.equal(weights["model.embed_tokens.weight"], before)
    assert isinstance(weights["lm_head.weight"], QuantizedWeight)
    assert (weights["lm_head.weight"].dequantize() - before).abs().max() < 0.1


def test_skipped_layers_keep_their_bytes(tiny_model, tmp_path):
    root = tiny_model("llama")
    result = run("gptq:group_size=32,skip=*.down_proj+model.layers.0.self_attn.q_proj", root, tmp_path / "step")
    skipped = [name for name in result.architecture.linears() if name not in result.schemes]
    assert sorted(skipped) == [
        "lm_head", "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj",
    ]  # fmt: skip
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(result.read([name])[name], Checkpoint.open(root).read([name])[name])


@pytest.mark.parametrize("spec", ["rtn", "gptq", "awq", "tune:iterations=2"])
def test_some_layers_get_eight_bits(tiny_model, tmp_path, spec):
    name, _, others = spec.partition(":")
    chosen = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]
    one = f"{name}:group_size=32,int8={'+'.join(chosen)}" + (f",{others}" if others else "")
    root = tiny_model("llama")
    result = run(one, root, tmp_path / "step")
    assert [layer for layer, scheme in result.schemes.items() if scheme.bits == 8] == sorted(chosen)
    assert {scheme.bits for layer, scheme in result.schemes.items() if layer not in chosen} == {4}
    if name == "rtn":  # which rounds each layer by itself
        names = [f"{layer}.weight" for layer in chosen]
        whole = run("rtn:group_size=32,bits=8", root, tmp_path / "whole").read(names)
        assert all(weight.same_bits(whole[name]) for name, weight in result.read(names).items())


def test_what_int8_does_not_mean_is_refused(tiny_model, tmp_path):
    root = tiny_model("llama")
    for spec, message in [
        ("rtn:group_size=32,int8=*.upproj", "The int8 pattern '*.upproj' matches no layer"),
        ("rtn:group_size=32,int8=lm_head,lm_head=true", "'lm_head' matches no layer"),
        ("rtn:group_size=32,int8=*.down_proj,skip=*.down_proj", "matches no layer"),
        ("rtn:group_size=32,bits=8,int8=*.down_proj", "gives every layer 8 bits"),
        ("mixed:int8=*.down_proj", "chooses which layers"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            run(spec, root, tmp_path / "step")


def test_each_block_is_calibrated_on_the_quantized_ones_before_it(tiny_model, tmp_path):
    """The second block's codes change when the first one is left alone: its inputs differ."""
    root = tiny_model("llama")
    whole = run("gptq:bits=4,group_size=channel", root, tmp_path / "whole")
    second_only = run("gptq:bits=4,group_size=channel,skip=model.layers.0.*", root, tmp_path / "second")
    name = "model.layers.1.self_attn.q_proj.weight"
    first, second = (step.read([name])[name] for step in (whole, second_only))
    assert isinstance(first, QuantizedWeight)
    assert not first.same_bits(second)


def test_scales_are_numbers_that_fp16_and_bf16_both_hold(tiny_model, tmp_path):
    result = run("gptq:group_size=32", tiny_model("qwen2"), tmp_path / "step")
    for block in result.blocks():
        for weight in block.weights.values():
            if isinstance(weight, QuantizedWeight):
                for dtype in (torch.float16, torch.bfloat16):
                    assert torch.equal(weight.scales.to(dtype).float(), weight.scales)


def test_a_group_size_that_does_not_divide_names_one_that_does(tiny_model):
    shape = Checkpoint.open(tiny_model("llama", intermediate_size=96)).architecture
    with pytest.raises(InputError, match="does not divide the input width 64") as caught:
        make_pass("gptq", {"group_size": 128}).plan(shape, {})
    assert caught.value.hint == "gptq:group_size=32 works for every layer."


def test_a_weight_is_rounded_once(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    done = {"model.layers.0.mlp.up_proj": Scheme(4, 32)}
    with pytest.raises(InputError, match="rounded once"):
        make_pass("rtn", {"group_size": 32}).plan(shape, done)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gptq:bits=3", "bits=3 is not allowed"),
        ("gptq:group_size=48", "group_size=48 is not allowed"),
        ("gptq:gruop_size=64", "did you mean 'group_size'"),
        ("gptq:bits", "not of the form option=value"),
        ("gqtp", "did you mean 'gptq'"),
    ],
)
def test_bad_options_are_one_sentence(spec, message):
    with pytest.raises(InputError, match=message):
        make_pass(*parse_spec(spec))


def test_a_skip_pattern_that_matches_nothing_is_refused(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="matches no layer"):
        make_pass("rtn", {"group_size": 32, "skip": ["*.dwon_proj"]}).plan(shape, {})


def test_damping_outside_its_range_is_refused(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match=r"damping=0\.0 is outside"):
        make_pass("gptq", {"group_size": 32, "damping": 0.0}).plan(shape, {})


@pytest.mark.parametrize(
    "spec", ["gptq:bits=8,group_size=64,skip=*.o_proj+*.q_proj", "rtn", "gptq:group_size=channel,symmetric=false"]
)
def test_spelling_round_trips(spec):
    assert make_pass(*parse_spec(spec)).spelled() == spec


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_lm_head_can_have_bits_of_its_own(tiny_model, tmp_path, name):
    result = run(f"{name}:group_size=32,lm_head=8", tiny_model("llama", tied=False), tmp_path / "step")
    assert result.schemes["lm_head"] == Scheme(8, 32)
    assert result.schemes["model.layers.0.mlp.up_proj"] == Scheme(4, 32)


@pytest.mark.parametrize("spec", ["rtn:lm_head=8", "rtn:lm_head=true", "rtn"])
def test_lm_head_is_spelled_as_it_was_given(spec):
    assert make_pass(*parse_spec(spec)).spelled() == spec
