import json
from dataclasses import replace

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, dense
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.low_rank import LowRank
from compressor.pass_ import PassContext
from compressor.registry import make_pass, parse_spec
from passes.factors import even_rank, rank_of_share

TOKENS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))


def apply(checkpoint, out, *specs, notes=None):
    for number, spec in enumerate(specs):
        one = make_pass(*parse_spec(spec))
        one.plan(checkpoint.architecture, checkpoint.schemes)
        context = PassContext(out / str(number), {}, TOKENS, 0, lambda *_: None, [] if notes is None else notes)
        checkpoint = one.apply(checkpoint, context)
    return checkpoint


def linears(checkpoint):
    names = [f"{name}.weight" for name in checkpoint.architecture.linears() if name != "lm_head"]
    return checkpoint.read(names)


def states(checkpoint):
    return Decoder(checkpoint).final_states(TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_every_family_is_of_the_rank_that_was_asked_for(tiny_model, tmp_path, family):
    whole = Checkpoint.open(tiny_model(family))
    made = apply(whole, tmp_path, "low-rank:ratio=0.5,allocation=uniform")
    shapes = whole.architecture.linears()
    for name, weight in linears(made).items():
        layer = name.removesuffix(".weight")
        assert weight.rank == rank_of_share(shapes[layer], 0.5) == made.schemes[layer].rank
        assert dense(weight).shape == shapes[layer]


@pytest.mark.parametrize("whitening", ["true", "false"])
def test_by_loss_all_linears_together_keep_the_share(tiny_model, tmp_path, whitening):
    whole = Checkpoint.open(tiny_model("llama"))
    made = apply(whole, tmp_path, f"low-rank:ratio=0.7,whitening={whitening}")
    kept = sum(w.down.numel() + w.up.numel() if isinstance(w, LowRank) else w.numel() for w in linears(made).values())
    share = kept / sum(dense(weight).numel() for weight in linears(whole).values())
    assert 0.68 < share <= 0.7
    assert len({weight.rank for weight in linears(made).values() if isinstance(weight, LowRank)}) > 3


def test_factors_are_what_is_dense(tiny_model, tmp_path):
    """The dense form holds the product, rounded once; here in float32."""
    whole = Checkpoint.open(tiny_model("llama"))
    factored = apply(whole, tmp_path / "factors", "low-rank:rank=12")
    multiplied = apply(whole, tmp_path / "dense", "low-rank:rank=12,form=dense")
    assert not multiplied.schemes
    assert multiplied.nbytes == whole.nbytes
    assert factored.nbytes < whole.nbytes
    for name, weight in linears(multiplied).items():
        torch.testing.assert_close(dense(linears(factored)[name]), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states(factored), states(multiplied), rtol=1e-3, atol=1e-3)


def test_what_the_linears_read_makes_it_closer(tiny_model, tmp_path):
    whole = Checkpoint.open(tiny_model("llama"))
    specs = {
        name: f"low-rank:ratio=0.6,allocation=uniform,{name}"
        for name in ("whitening=false", "propagation=false", "propagation=true")
    }
    errors = [
        float((states(apply(whole, tmp_path / name, spec)) - states(whole)).square().mean())
        for name, spec in specs.items()
    ]
    assert errors[1] < 0.8 * errors[0]


def test_skipped_layers_stay_as_they_are(tiny_model, tmp_path):
    whole = Checkpoint.open(tiny_model("llama"))
    made = apply(whole, tmp_path, "low-rank:skip=*.down_proj")
    for name, weight in linears(made).items():
        if name.endswith("down_proj.weight"):
            assert torch.equal(weight, linears(whole)[name])


def test_a_factored_folder_is_read_as_it_was_written(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    root = tiny_model("llama")
    AutoModelForCausalLM.from_pretrained(root).bfloat16().save_pretrained(root)
    made = apply(Checkpoint.open(root), tmp_path, "low-rank:rank=9,skip=*.down_proj")
    config = json.loads((made.root / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "llmc"
    assert not (made.root / "model.safetensors").exists()
    weight = made.read(["model.layers.0.mlp.up_proj.weight"])["model.layers.0.mlp.up_proj.weight"]
    assert (weight.down.dtype, weight.up.dtype) == (torch.bfloat16, torch.bfloat16)
    assert str(made.schemes["model.layers.0.mlp.up_proj"]) == "low-rank r9"
    again = made.rewrite(tmp_path / "again", lambda block: block, {})
    assert again.digest == made.digest


def test_dequantizing_multiplies_the_factors_out(tiny_model, tmp_path):
    from compressor.dequantize import dequantize

    made = apply(Checkpoint.open(tiny_model("llama")), tmp_path, "low-rank:rank=9")
    plain, sentence = dequantize(made, tmp_path / "plain", lambda *_: None)
    assert not plain.schemes
    assert "low-rank" in sentence
    torch.testing.assert_close(states(plain), states(made))


def test_inputs_that_were_never_active_do_no_harm(tiny_model, tmp_path):
    root = tiny_model("llama")
    whole = Checkpoint.open(root)

    def silence(block):
        name = f"{block.prefix}input_layernorm.weight"
        return block.with_weights({name: block.weights[name] * (torch.arange(64) > 9)}) if block.prefix else block

    silenced = whole.rewrite(tmp_path / "silenced", silence, {})
    made = apply(silenced, tmp_path / "made", "low-rank:ratio=0.5")
    assert all(dense(weight).isfinite().all() for weight in linears(made).values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.0}, "ratio=0 leaves nothing"),
        ({"ratio": 1.0}, "ratio=1 saves nothing"),
        ({"ratio": 0.01}, "leaves no feature of .*, 64 x 64"),
        ({"rank": -1}, "is negative"),
        ({"rank": 22}, "rank=22 saves nothing in .*k_proj, 32 x 64: factors of a rank above 21 are larger"),
        ({"damping": 0.0}, "outside"),
        ({"skip": ("*_proj",)}, "No layer is left to factor"),
        ({"skip": ("*.conv",)}, "matches no layer"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(tiny_model, options, says):
    with pytest.raises(InputError, match=says):
        make_pass("low-rank", options).plan(Checkpoint.open(tiny_model("llama")).architecture, {})


def test_a_quantizer_says_what_goes_before_it(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    schemes = make_pass("low-rank", {}).plan(architecture, {})
    with pytest.raises(InputError, match="rtn rounds no factors") as refused:
        make_pass("rtn", {"group_size": 32}).plan(architecture, schemes)
    assert "form=dense" in refused.value.hint


@pytest.mark.parametrize("following", ["gptq:group_size=32", "low-rank", "smoothquant", "prune-width", "rotate"])
def test_what_would_change_factors_is_refused(tiny_model, following):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    schemes = make_pass("low-rank", {}).plan(architecture, {})
    with pytest.raises(InputError):
        make_pass(*parse_spec(following)).plan(architecture, schemes)


def test_even_ranks_are_the_highest_that_are_taken(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    highest = min(map(even_rank, architecture.linears().values()))
    planned = make_pass("low-rank", {"rank": highest}).plan(architecture, {})
    assert {scheme.rank for scheme in planned.values()} == {highest}
    assert make_pass("low-rank", {"rank": 5, "form": "dense"}).plan(architecture, {}) == {}
    assert replace(next(iter(planned.values())), rank=0).core.rank == 0
