from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec

TOKENS = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
# Families whose residual stream nothing acts on channel by channel.
TURNED = [name for name, family in FAMILIES.items() if family.norm == "rms" and not family.modules.mlp.post_norm]
LAYER = "model.layers.0."
VALUES, UP = LAYER + "self_attn.v_proj.weight", LAYER + "mlp.up_proj.weight"
SPIKY = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
EMBEDDING = "model.embed_tokens.weight"


def run(spec, root, out, seed=0):
    one = make_pass(*parse_spec(spec))
    checkpoint = Checkpoint.open(root)
    assert one.plan(checkpoint.architecture, checkpoint.schemes) is not None
    notes: list[str] = []
    result = one.apply(checkpoint, PassContext(Path(out), {}, None, seed, lambda *_: None, notes))
    return result, notes


@torch.no_grad()
def logits(root):
    return AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager")(TOKENS).logits


def assert_same_model(step, root):
    """Equal logits as transformers computes them, to what float32 sums leave of the scale they have."""
    expected = logits(root)
    error = (logits(step.root) - expected).abs().max() / expected.abs().max()
    assert error < 5e-6


def weights_of(root):
    return {name: weight for block in Checkpoint.open(root).blocks() for name, weight in block.weights.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TURNED)
def test_logits_stay_in_every_family(tiny_model, tmp_path, family, tied):
    root = tiny_model(family, tied=tied)
    step, _ = run("rotate", root, tmp_path / "step")
    assert_same_model(step, root)
    before, after = weights_of(root), weights_of(step.root)
    shape = Checkpoint.open(root).architecture
    for name in (f"{shape.embedding}.weight", *(f"{linear}.weight" for linear in list(shape.linears())[:4])):
        assert (after[name] - before[name]).norm() > 0.5 * before[name].norm(), "the weight is turned"


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(TURNED)))
def test_a_stream_that_cannot_be_turned_is_refused(tiny_model, tmp_path, family):
    with pytest.raises(InputError, match="residual stream") as caught:
        run("rotate", tiny_model(family), tmp_path / "step")
    assert "residual=false" in caught.value.hint


@pytest.mark.parametrize(
    ("family", "options"),
    [*((family, "residual=false") for family in FAMILIES), *((family, "values=false") for family in TURNED)],
)
def test_either_rotation_is_exact_alone(tiny_model, tmp_path, family, options):
    root = tiny_model(family)
    step, _ = run(f"rotate:{options}", root, tmp_path / "step")
    assert_same_model(step, root)


@pytest.mark.parametrize(
    "shape",
    [
        {"attention_bias": True, "mlp_bias": True},  # on every linear, of which o_proj's and down_proj's are turned
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"hidden_size": 72, "head_dim": 20, "num_attention_heads": 6},  # Paley factors
        {"hidden_size": 52, "head_dim": 14},  # no Hadamard matrix
    ],
    ids=str,
)
def test_logits_stay_in_every_shape(tiny_model, tmp_path, shape):
    root = tiny_model("llama", **shape)
    step, _ = run("rotate", root, tmp_path / "step")
    assert_same_model(step, root)


def test_sliding_windows_stay(tiny_model, tmp_path):
    root = tiny_model("mistral", sliding_window=16)
    step, _ = run("rotate", root, tmp_path / "step")
    assert step.architecture.windows == (16, 16)
    assert_same_model(step, root)


def test_norms_have_no_gain_left(tiny_model, tmp_path):
    step, _ = run("rotate", tiny_model("qwen3"), tmp_path / "step")
    for name, weight in weights_of(step.root).items():
        if name.endswith("norm.weight"):
            per_head = name.endswith(("q_norm.weight", "k_norm.weight"))
            assert torch.equal(weight, torch.ones_like(weight)) != per_head


def test_values_alone_leave_everything_else_as_it_is(tiny_model, tmp_path):
    root = tiny_model("qwen2")
    step, notes = run("rotate:residual=false", root, tmp_path / "step")
    before, after = weights_of(root), weights_of(step.root)
    changed = {name.removeprefix("model.layers.0.") for name in before if not torch.equal(before[name], after[name])}
    layer = {name for name in changed if not name.startswith("model.")}
    assert layer == {"self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight"}
    assert changed - layer == {f"model.layers.1.{name}" for name in layer}
    assert step.architecture.tied_embeddings
    assert notes == []


def test_a_tied_head_is_untied_and_the_ledger_says_what_it_costs(tiny_model, tmp_path):
    root = tiny_model("llama", tied=True)
    step, notes = run("rotate", root, tmp_path / "step")
    assert not step.architecture.tied_embeddings
    assert notes == [
        "lm_head is untied, since the final norm's gain goes into it: 73,728 bytes more in float32; "
        "residual=false keeps it tied"
    ]
    assert step.nbytes == Checkpoint.open(root).nbytes + 288 * 64 * 4


def test_a_tied_head_stays_tied_where_the_gain_is_one_number(tiny_model, tmp_path):
    def level(block):
        gain = {"model.norm.weight": torch.full((64,), 1.5)} if block.name == "head" else {}
        return block.with_weights(gain)

    root = Checkpoint.open(tiny_model("llama", tied=True)).rewrite(tmp_path / "level", level, {}).root
    step, notes = run("rotate", root, tmp_path / "step")
    assert step.architecture.tied_embeddings
    assert notes == []
    assert_same_model(step, root)


def test_a_16_bit_model_is_not_rounded_again(tiny_model, tmp_path):
    """In bfloat16 the turned weights would be off by parts in a thousand, before any quantizer has seen them."""
    float_root = tiny_model("llama", tied=False)
    root = Checkpoint.open(float_root).rewrite(tmp_path / "bf16", lambda block: block, {}, torch.bfloat16).root
    step, notes = run("rotate", root, tmp_path / "step")
    assert {info.dtype for info in step.tensors.values()} == {torch.float32}
    assert step.config["dtype"] == "float32"
    assert notes == ["weights are stored in float32, not bfloat16: rotated ones are no bfloat16 numbers"]
    assert_same_model(step, root)


def test_outliers_are_spread_and_rounding_costs_less(tiny_model, tmp_path):
    def with_outlier(block):
        spiky = {name: weight.clone() for name, weight in block.weights.items() if name.endswith(SPIKY)}
        for weight in spiky.values():
            weight[:, 5] *= 20
        return block.with_weights(spiky)

    root = Checkpoint.open(tiny_model("llama", tied=False)).rewrite(tmp_path / "spiky", with_outlier, {}).root
    rotated, _ = run("rotate", root, tmp_path / "rotated")
    plain, _ = run("rtn:group_size=64", root, tmp_path / "plain")
    both, _ = run("rtn:group_size=64", rotated.root, tmp_path / "both")
    assert isinstance(both.read([UP])[UP], QuantizedWeight)
    expected = logits(root)
    unrotated, turned = ((logits(step.root) - expected).square().mean() for step in (plain, both))
    assert turned < 0.5 * unrotated


def test_the_seed_decides(tiny_model, tmp_path):
    root = tiny_model("llama")
    first, again, other = (run("rotate", root, tmp_path / str(i), seed)[0] for i, seed in enumerate((3, 3, 4)))
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_layers_and_heads_have_rotations_of_their_own(tiny_model, tmp_path):
    """Values rotated by one matrix everywhere would keep what two heads have in common."""
    root = tiny_model("llama")
    same = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).repeat(2, 1)

    def level(block):
        name = f"model.{block.name}.self_attn.v_proj.weight"
        return block.with_weights({name: same.clone()} if name in block.weights else {})

    root = Checkpoint.open(root).rewrite(tmp_path / "level", level, {}).root
    step, _ = run("rotate:residual=false", root, tmp_path / "step")
    turned = weights_of(step.root)
    heads = [*turned[VALUES].split(16), *turned[VALUES.replace("layers.0", "layers.1")].split(16)]
    assert not any(torch.allclose(heads[i], heads[j]) for i in range(4) for j in range(i))


def test_a_quantized_model_is_refused(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="up_proj is already int4 g32 symmetric; a weight is rounded once") as caught:
        make_pass("rotate", {}).plan(shape, {"model.layers.0.mlp.up_proj": Scheme(4, 32)})
    assert caught.value.hint == (
        "Rotate before quantizing, and start from the float checkpoint; --requantize dequantizes this one."
    )


def test_scales_of_a_cache_of_unrotated_values_are_refused(tiny_model, tmp_path):
    checkpoint = replace(Checkpoint.open(tiny_model("llama")), kv_cache=True)
    with pytest.raises(InputError, match="scales of an fp8 key-value cache, which do not fit rotated values"):
        make_pass("rotate", {}).apply(checkpoint, PassContext(tmp_path / "out", {}, None, 0, lambda *_: None, []))


def test_nothing_to_rotate_is_refused(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="does nothing"):
        make_pass("rotate", {"residual": False, "values": False}).plan(shape, {})


@pytest.mark.parametrize("spec", ["rotate", "rotate:residual=false", "rotate:values=false"])
def test_spelling_round_trips(spec):
    assert make_pass(*parse_spec(spec)).spelled() == spec
