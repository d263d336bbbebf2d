import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.quantized import Scheme
from passes.folding import Fold, cache_scales_after, folds, refuse_fixed, rescale, snap

TOKENS = torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(0))


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS), decoder.head())


def with_all_biases(family):
    traits = FAMILIES[family]
    return {key: True for key in (traits.qkv_bias, traits.output_bias, traits.mlp_bias) if isinstance(key, str)}


def every_fold(checkpoint):
    return folds(checkpoint.architecture, o_proj=True, down_proj=True)


def random_scales(fold, seed, heads):
    """Scales from 1/8 to 8, one for each feature of the fold's producer."""
    count = fold.width
    if not fold.is_norm and fold.readers[0].endswith(("o_proj", "attn.c_proj")):
        count = heads * fold.width
    return torch.exp2(torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 6 - 3)


def rescaled(block, checkpoint):
    """The block with every input re-scaled at random; the embedding and the head as they are."""
    if block.index is not None:
        for seed, fold in enumerate(every_fold(checkpoint)):
            block = rescale(block, fold, snap(block, fold, random_scales(fold, seed, checkpoint.architecture.kv_heads)))
    return block


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_float_model_computes_what_it_did(tiny_model, tmp_path, family, biases):
    before = Checkpoint.open(tiny_model(family, **(with_all_biases(family) if biases else {})))
    after = before.rewrite(tmp_path / "step", lambda block: rescaled(block, before), {})
    torch.testing.assert_close(logits(after), logits(before), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_between_norm_and_output_is_changed(tiny_model, family):
    checkpoint = Checkpoint.open(tiny_model(family, **with_all_biases(family)))
    before = checkpoint.block("layers.0")
    after = rescaled(before, checkpoint)
    untouched = [name for name in before.weights if torch.equal(before.weights[name], after.weights[name])]
    # queries and keys are left alone, and so is what is added to the residual stream
    post_norms = [branch.post_norm or "-" for branch in checkpoint.architecture.modules.branches]
    left = ("q_norm.weight", "k_norm.weight", ".bias", "mlp.c_proj.weight", *(f"{name}.weight" for name in post_norms))
    assert all(name.endswith(left) for name in untouched)
    assert not any(name.endswith(("v_proj.bias", "up_proj.bias", "c_attn.bias", "ln_1.bias")) for name in untouched)


def test_query_heads_that_share_a_head_share_its_scales():
    fold = Fold("self_attn.v_proj", ("self_attn.o_proj",), sharing=2, width=2)
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert fold.by_reader(scales).tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert fold.by_producer(torch.arange(8)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert torch.equal(fold.by_producer(fold.by_reader(scales)), scales.expand(2, -1))
    assert torch.equal(fold.by_reader(torch.stack([scales, scales]))[1], fold.by_reader(scales))


def test_heads_are_shared_as_transformers_repeats_them(tiny_model):
    from transformers.models.llama.modeling_llama import repeat_kv

    architecture = Checkpoint.open(tiny_model("llama")).architecture
    (fold,) = [one for one in folds(architecture, o_proj=True, down_proj=False) if one.sharing > 1]
    values = torch.arange(2 * 16.0)
    heads = repeat_kv(values.view(1, architecture.kv_heads, 1, architecture.head_dim), fold.sharing)
    assert torch.equal(fold.by_reader(values), heads.flatten())


def test_only_what_was_asked_for_is_rescaled(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    producers = [fold.producer for fold in folds(architecture, o_proj=False, down_proj=False)]
    assert producers == ["input_layernorm", "post_attention_layernorm"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_snapped_scales_leave_gains_and_biases_that_16_bits_hold(tiny_model, family):
    checkpoint = Checkpoint.open(tiny_model(family, **with_all_biases(family)))
    block = checkpoint.block("layers.0")
    for seed, fold in enumerate(every_fold(checkpoint)):
        wanted = random_scales(fold, seed, checkpoint.architecture.kv_heads)
        scales = snap(block, fold, wanted)
        # A gain of one plus the weight is coarser where the weight is nearly minus one.
        assert ((scales / wanted - 1).abs() <= (2**-6 if fold.shift else 2**-8)).all()
        kept = rescale(block, fold, scales).weights.get(f"model.layers.0.{fold.exact_part}")
        if kept is None:  # no bias: nothing to keep exact
            assert torch.equal(scales, wanted)
            continue
        assert not torch.equal(scales, wanted)
        torch.testing.assert_close(kept, kept.bfloat16().float(), atol=3e-7, rtol=2e-7)


def test_a_gain_of_zero_leaves_the_scale_alone(tiny_model):
    block = Checkpoint.open(tiny_model("llama")).block("layers.0")
    name = "model.layers.0.input_layernorm.weight"
    block = block.with_weights({name: torch.zeros(64)})
    fold = Fold("input_layernorm", (), 1, 64, is_norm=True)
    assert torch.equal(snap(block, fold, torch.full((64,), 3.0)), torch.full((64,), 3.0))


def test_what_is_quantized_is_not_rescaled():
    with pytest.raises(InputError, match=r"awq re-scales a\.v_proj, which is int4 g32 symmetric already"):
        refuse_fixed("awq", ["a.o_proj", "a.v_proj"], {"a.v_proj": Scheme(4, 32)})
    refuse_fixed("awq", ["a.o_proj"], {"a.v_proj": Scheme(4, 32)})


def test_values_of_a_cache_with_scales_are_not_rescaled():
    with pytest.raises(InputError, match="fp8 cache"):
        cache_scales_after("awq", True, True)
    assert not cache_scales_after("awq", True, False)
    assert cache_scales_after("awq", False, True)
