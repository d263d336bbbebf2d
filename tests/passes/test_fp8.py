"""fp8: weights against every number that e4m3 has, steps against transformers, scales against the calibration text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibration.ranges import RangeStream
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.families import FUSED_LINEARS
from compressor.inspection import describe
from compressor.pass_ import Need, PassContext
from compressor.plan import check_plan
from compressor.quantized import FP8, QuantizedWeight, Scheme
from compressor.registry import make_pass, make_target, parse_spec
from passes.fp8 import round_to_fp8

TOKENS = torch.randint(0, 256, (4, 48), generator=torch.Generator().manual_seed(0))
SCHEME = Scheme(8, None, type="float")


def run(spec, root, out, notes=None):
    one = make_pass(*parse_spec(spec))
    checkpoint = Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    tokens = TOKENS if one.needs else None
    result = one.apply(checkpoint, PassContext(out, {}, tokens, 0, lambda *_: None, [] if notes is None else notes))
    assert dict(result.schemes) == planned
    return result


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS), decoder.head())


@settings(deadline=None)
@given(st.integers(-20, 12), st.integers(0, 2**31))
def test_codes_are_the_nearest_numbers_of_e4m3(exponent, seed):
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    found = round_to_fp8(weight, SCHEME)
    assert found.codes.dtype == FP8
    assert torch.equal(found.scales, found.scales.half().float())
    assert torch.equal(found.scales, found.scales.bfloat16().float())
    positive = torch.arange(127, dtype=torch.uint8).view(FP8).double()
    numbers = torch.cat((-positive, positive)) * found.scales.double().unsqueeze(-1)
    nearest = (weight.double().unsqueeze(-1) - numbers).abs().amin(-1)
    error = (found.dequantize().double() - weight.double()).abs()
    torch.testing.assert_close(error, nearest, atol=0, rtol=1e-5)


@settings(deadline=None)
@given(st.integers(-12, 12), st.integers(0, 2**31))
def test_the_largest_value_of_a_channel_is_the_largest_code(exponent, seed):
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    assert bool((round_to_fp8(weight, SCHEME).codes.float().abs().amax(1) == 448).all())


def test_zero_channels_are_noted(tiny_model, tmp_path):
    root, up = tiny_model("llama"), "model.layers.0.mlp.up_proj"
    tensors = load_file(root / "model.safetensors")
    tensors[f"{up}.weight"][3:5] = 0
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    notes = []
    step = run("fp8", root, tmp_path / "step", notes)
    assert notes == [f"{up}: 2 output channels are zero; they get the smallest scale"]
    assert bool((step.read([f"{up}.weight"])[f"{up}.weight"].dequantize()[3:5] == 0).all())


@pytest.mark.parametrize("kv_cache", ["false", "true"])
@pytest.mark.parametrize("activations", ["none", "dynamic", "static"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_step_computes_in_transformers_what_it_is_measured_as(tiny_model, tmp_path, family, activations, kv_cache):
    root = tiny_model(family)
    step = run(f"fp8:activations={activations},kv_cache={kv_cache}", root, tmp_path / "step")
    assert step.kv_cache == (kv_cache == "true")
    assert len(step.schemes) == 14
    ours = logits(step)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(step.root).eval()(TOKENS).logits, ours)
    assert 1e-3 < float((ours - logits(Checkpoint.open(root))).abs().mean()) < 0.1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layers_that_runtimes_fuse_share_the_scale_of_a_tensor(tiny_model, tmp_path, family):
    root = tiny_model(family)
    step = run("fp8:scales=tensor,activations=static", root, tmp_path / "step")
    float_weights = load_file(root / "model.safetensors")
    stored = load_file(step.root / "model.safetensors")
    for linears in (*FUSED_LINEARS, ("self_attn.o_proj",), ("mlp.down_proj",)):
        names = [f"model.layers.1.{linear}.weight" for linear in linears]
        peak = max(float(float_weights[name].abs().max()) for name in names)
        found = list(step.read(names).values())
        assert {tuple(stored[f"{name}_scale"].shape) for name in names} == {(1,)}
        assert len({float(scale) for weight in found for scale in weight.scales}) == 1
        assert len({float(weight.input_scale) for weight in found}) == 1
        assert float(found[0].scales[0]) == pytest.approx(peak / 448, rel=2**-8)
        assert max(float(weight.codes.float().abs().max()) for weight in found) == 448
        for name, weight in zip(names, found, strict=True):
            assert weight.scheme.per_tensor
            finest = weight.scales * torch.maximum(weight.codes.float().abs() / 16, torch.tensor(2.0**-10))
            assert bool(((weight.dequantize() - float_weights[name]).abs() <= finest * 1.01).all())
    ours = logits(step)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(step.root).eval()(TOKENS).logits, ours)


def test_a_skipped_layer_does_not_share_its_range(tiny_model, tmp_path):
    root = tiny_model("llama")
    q, v = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qv")
    tensors = load_file(root / "model.safetensors")
    tensors[v] *= 100
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    apart = run("fp8:scales=tensor,skip=v_proj", root, tmp_path / "apart").read([q])[q]
    together = run("fp8:scales=tensor", root, tmp_path / "together").read([q])[q]
    assert float(together.scales[0]) > 20 * float(apart.scales[0])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_scales_come_from_the_largest_values(tiny_model, tmp_path, family):
    root = tiny_model(family, tied=False)
    step = run("fp8:activations=static,kv_cache=true,lm_head=true", root, tmp_path / "step")
    original = Checkpoint.open(root)
    stream = RangeStream(Decoder(original), TOKENS)
    checked = 0
    for before, after in zip(original.blocks(), step.blocks(), strict=True):
        ranges = stream.observe(before)
        scales = {name: after.weights[f"{name}.weight"].input_scale for name in ranges.inputs}
        scales |= {name: after.weights[name].reshape(()) for name in ranges.cache}
        for name, largest in (ranges.inputs | ranges.cache).items():
            torch.testing.assert_close(scales[name], largest / 448, rtol=2**-8, atol=0)
            checked += 1
    assert checked == 15 + 4


def test_a_tied_head_is_untied_and_the_embedding_stays(tiny_model, tmp_path):
    root = tiny_model("llama")
    step = run("fp8:lm_head=true", root, tmp_path / "step")
    assert isinstance(step.read(["lm_head.weight"])["lm_head.weight"], QuantizedWeight)
    before, after = (c.block("embedding").weights["model.embed_tokens.weight"] for c in (Checkpoint.open(root), step))
    assert torch.equal(before, after)


def test_it_stands_beside_integers_in_one_folder(tiny_model, tmp_path):
    first = run("rtn:group_size=32,skip=*.self_attn.*", tiny_model("llama"), tmp_path / "first")
    step = run("fp8:skip=*.mlp.*,kv_cache=true", first.root, tmp_path / "step")
    assert {scheme.kind for scheme in step.schemes.values()} == {"int4", "fp8"}
    ours = logits(step)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(step.root).eval()(TOKENS).logits, ours)


def test_inspect_tells_of_the_cache(tiny_model, tmp_path):
    root = tiny_model("llama")
    assert "key-value cache" not in describe(root)
    assert describe(run("fp8:kv_cache=true", root, tmp_path / "step").root)["key-value cache"] == "fp8"


def test_an_int4_model_can_have_an_fp8_cache(tiny_model, tmp_path):
    first = run("rtn:group_size=32", tiny_model("llama"), tmp_path / "first")
    step = run("fp8:skip=*,kv_cache=true", first.root, tmp_path / "step")
    assert step.kv_cache
    assert step.schemes == first.schemes
    ours = logits(step)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(step.root).eval()(TOKENS).logits, ours)
    assert not torch.equal(ours, logits(first))


def test_a_cache_gets_its_scales_once(tiny_model, tmp_path):
    first = run("fp8:skip=*.mlp.*,kv_cache=true", tiny_model("llama"), tmp_path / "first")
    with pytest.raises(InputError, match="has its scales already") as caught:
        run("fp8:skip=*.self_attn.*,kv_cache=true", first.root, tmp_path / "again")
    assert caught.value.hint == "fp8:kv_cache=false keeps them."
    kept = run("fp8:skip=*.self_attn.*", first.root, tmp_path / "second")
    name = "model.layers.1.self_attn.v_scale"
    assert torch.equal(kept.read([name])[name], first.read([name])[name])


def test_text_is_needed_for_static_scales_only():
    for options, needs in (("", set()), ("activations=none", set()), ("activations=static", {Need.CALIBRATION}),
                           ("kv_cache=true", {Need.CALIBRATION})):  # fmt: skip
        assert make_pass(*parse_spec(f"fp8:{options}")).needs == needs


def test_targets_without_cache_scales_refuse_them_before_any_work(tiny_model, tmp_path):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    asked = make_pass("fp8", {"kv_cache": True})
    check_plan(checkpoint, [asked], make_target("hf", {}))
    for name in ("vllm-int4", "onnx-fp32"):
        with pytest.raises(
            InputError, match="no scales of an fp8 key-value cache; kv_cache=false works, or the target"
        ):
            check_plan(checkpoint, [asked], make_target(name, {}))
    step = run("fp8:kv_cache=true", checkpoint.root, tmp_path / "step")
    with pytest.raises(InputError, match="no scales of an fp8 key-value cache"):
        check_plan(step, [], make_target("onnx-fp32", {}))


def test_passes_that_change_values_refuse_cache_scales_before_any_work(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    cache_alone = make_pass("fp8", {"kv_cache": True, "skip": ("*",)})
    for name, options in (
        ("rotate", {}),
        ("awq", {"round": False, "group_size": 32}),
        ("smoothquant", {"o_proj": True}),
    ):
        changing = make_pass(name, options)
        with pytest.raises(InputError, match=r"fp8 (key-value )?cache"):
            check_plan(checkpoint, [cache_alone, changing], make_target("hf", {}))
        check_plan(checkpoint, [changing, cache_alone], make_target("hf", {}))


def test_every_layer_rounds_what_it_reads(tiny_model, tmp_path):
    step = run("fp8:activations=static", tiny_model("llama"), tmp_path / "step")
    for block in step.blocks():
        for weight in block.weights.values():
            if isinstance(weight, QuantizedWeight):
                assert weight.scheme.activations is not None
                assert weight.input_scale is not None


def test_weights_are_rounded_once(tiny_model, tmp_path):
    step = run("fp8", tiny_model("llama"), tmp_path / "step")
    with pytest.raises(InputError, match="is already fp8 channel, fp8 activations per token; a weight is rounded once"):
        run("fp8", step.root, tmp_path / "again")
