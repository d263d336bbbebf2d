"""nvfp4: weights next to compressed-tensors' own quantization, steps next to transformers, scales next to the text."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibration.ranges import RangeStream
from compressor import layout
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.families import FUSED_LINEARS
from compressor.nvfp4 import round_codes
from compressor.pass_ import Need, PassContext
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec
from passes.nvfp4 import round_to_nvfp4

TOKENS = torch.randint(0, 256, (4, 48), generator=torch.Generator().manual_seed(0))
SCHEME = Scheme(4, 16, type="float")


def run(spec, root, out):
    one = make_pass(*parse_spec(spec))
    checkpoint = Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    result = one.apply(
        checkpoint, PassContext(out, {}, TOKENS if one.needs else None, 0, lambda what, done, total: None, [])
    )
    assert dict(result.schemes) == planned
    return result


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.final_states(TOKENS) @ decoder.head().T


def random_weight(seed, exponent=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 64, generator=generator) * torch.rand(64, generator=generator) * 2.0**exponent


@settings(deadline=None)
@given(st.integers(-20, 10), st.integers(0, 2**31))
def test_without_a_search_it_is_what_compressed_tensors_makes(exponent, seed):
    weight = random_weight(seed, exponent)
    found = round_to_nvfp4(weight, SCHEME, search=False)
    group = QuantizationConfig(config_groups={"NVFP4A16": ["Linear"]}).config_groups["NVFP4A16"]
    divisor = (1 / found.tensor_scale).reshape(1)
    low, high = weight.unflatten(1, (-1, 16)).aminmax(dim=-1)
    scales, _ = calculate_qparams(low, high, group.weights, divisor)
    library = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    given_weight = {"weight": weight + 0.0, "weight_scale": scales, "weight_global_scale": divisor}
    wanted = layout.decode(library.compress(given_weight, group), SCHEME)
    assert torch.equal(found.scales, wanted.scales)
    assert torch.equal(found.dequantize(), wanted.dequantize())  # it has a second zero, of what is rounded to it


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_the_search_raises_no_block_s_error(seed):
    weight = random_weight(seed)
    plain, searched = (
        (round_to_nvfp4(weight, SCHEME, search=search).dequantize() - weight).square().unflatten(1, (-1, 16)).sum(-1)
        for search in (False, True)
    )
    assert bool((searched <= plain * (1 + 1e-5)).all())
    assert float(searched.sum()) < float(plain.sum())


def test_the_search_finds_the_best_of_all_block_scales_that_reach_a_fourth():
    weight = random_weight(0)
    found = round_to_nvfp4(weight, SCHEME)
    blocks = (weight / found.tensor_scale).unflatten(1, (-1, 16))
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().view(-1, 1, 1, 1)
    errors = (round_codes(blocks / every) * every - blocks).square().sum(-1)
    own = (
        (found.dequantize() / found.tensor_scale - weight / found.tensor_scale).square().unflatten(1, (-1, 16)).sum(-1)
    )
    assert float((own <= errors.amin(0) * (1 + 1e-5)).float().mean()) > 0.9


def test_rows_are_rounded_alike_in_any_parts(monkeypatch):
    weight = random_weight(1)
    whole = round_to_nvfp4(weight, SCHEME)
    monkeypatch.setattr("passes.nvfp4.ELEMENTS_AT_ONCE", 64)
    assert round_to_nvfp4(weight, SCHEME).same_bits(whole)


@pytest.mark.parametrize("activations", ["none", "static"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_step_computes_in_transformers_what_it_is_measured_as(tiny_model, tmp_path, family, activations):
    """Weights come out of the library in bfloat16, which holds them; the arithmetic is then compared in float32."""
    root = tiny_model(family, tied=False)
    step = run(f"nvfp4:activations={activations}", root, tmp_path / "step")
    assert len(step.schemes) == 14
    model = AutoModelForCausalLM.from_pretrained(step.root).eval()
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        in_bfloat16 = model(TOKENS).logits.float()  # decompresses
    torch.nn.Module.float(model)
    unquantized = {name: tensor for name, tensor in load_file(root / "model.safetensors").items()
                   if name.removesuffix(".weight") not in step.schemes}  # fmt: skip
    model.load_state_dict(unquantized, strict=False)
    with torch.no_grad():
        theirs = model(TOKENS).logits
    ours = logits(step)
    assert torch.equal(theirs, ours)
    change = float((ours - logits(Checkpoint.open(root))).norm() / ours.norm())
    assert 0.02 < change < 0.5
    assert float((in_bfloat16 - ours).norm() / ours.norm()) < change


def test_layers_that_runtimes_fuse_share_their_scales(tiny_model, tmp_path):
    root = tiny_model("llama")
    step = run("nvfp4:activations=static", root, tmp_path / "step")
    float_weights = load_file(root / "model.safetensors")
    for linears in (*FUSED_LINEARS, ("self_attn.o_proj",), ("mlp.down_proj",)):
        names = [f"model.layers.1.{linear}.weight" for linear in linears]
        peak = max(float(float_weights[name].abs().max()) for name in names)
        found = list(step.read(names).values())
        assert len({float(weight.input_scale) for weight in found}) == 1
        (scale,) = {float(weight.tensor_scale) for weight in found}
        assert 6 * 448 * scale / 2 < peak <= 6 * 448 * scale


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_input_scales_come_from_the_largest_values(tiny_model, tmp_path, family):
    root = tiny_model(family, tied=False)
    step = run("nvfp4:activations=static,lm_head=true", root, tmp_path / "step")
    original = Checkpoint.open(root)
    stream = RangeStream(Decoder(original), TOKENS)
    checked = 0
    for before, after in zip(original.blocks(), step.blocks(), strict=True):
        for name, largest in stream.observe(before).inputs.items():
            reach = 6 * 448 * float(after.weights[f"{name}.weight"].input_scale)
            assert reach / 2 < float(largest) <= reach
            checked += 1
    assert checked == 15


def test_a_tied_head_is_untied_and_the_embedding_stays(tiny_model, tmp_path):
    root = tiny_model("llama")
    step = run("nvfp4:lm_head=true", root, tmp_path / "step")
    assert isinstance(step.read(["lm_head.weight"])["lm_head.weight"], QuantizedWeight)
    before, after = (c.block("embedding").weights["model.embed_tokens.weight"] for c in (Checkpoint.open(root), step))
    assert torch.equal(before, after)


def test_it_stands_beside_other_kinds_in_one_folder(tiny_model, tmp_path):
    first = run("nvfp4:skip=*.self_attn.*", tiny_model("llama"), tmp_path / "first")
    step = run("fp8:skip=*.mlp.*,kv_cache=true", first.root, tmp_path / "step")
    assert {scheme.kind for scheme in step.schemes.values()} == {"nvfp4", "fp8"}
    kept = [name for name in first.schemes if ".mlp." in name]
    assert step.kv_cache
    for name in kept:
        weights = [folder.read([f"{name}.weight"])[f"{name}.weight"] for folder in (first, step)]
        assert weights[0].same_bits(weights[1])


def test_a_zero_weight_stays_zero(tiny_model, tmp_path):
    root, up = tiny_model("llama"), "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(root / "model.safetensors")
    tensors[up][:] = 0
    tensors[up][0, 0] = 1.0  # a matrix of one value is refused
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    found = run("nvfp4", root, tmp_path / "step").read([up])[up]
    assert not bool(found.dequantize()[1:].any())


def test_a_width_that_is_no_multiple_of_16_is_refused(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", intermediate_size=136)).architecture
    with pytest.raises(InputError, match=r"do not divide the input width 136 of model.layers.0.mlp.down_proj"):
        make_pass("nvfp4", {}).plan(architecture, {})
    make_pass("nvfp4", {"skip": ("down_proj",)}).plan(architecture, {})


def test_text_is_needed_for_input_scales_only():
    assert make_pass("nvfp4", {}).needs == set()
    assert make_pass("nvfp4", {"activations": "static"}).needs == {Need.CALIBRATION}


def test_weights_are_rounded_once(tiny_model, tmp_path):
    step = run("nvfp4", tiny_model("llama"), tmp_path / "step")
    with pytest.raises(InputError, match="is already nvfp4 g16; a weight is rounded once"):
        run("nvfp4", step.root, tmp_path / "again")
