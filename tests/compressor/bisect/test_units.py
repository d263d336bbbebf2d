"""What can be taken back by itself, and the errors that layers have by themselves."""

import pytest
import torch

from compressor.bisect.units import units_of, with_errors
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.pass_ import PassContext
from compressor.registry import make_pass, make_target, parse_spec

TOKENS = torch.arange(120).view(4, 30)


@pytest.fixture
def units(tiny_model, tmp_path):
    """`units(spec, target)`: the checkpoint before a pass, the step that it left, and what can be taken back of it."""

    def make(spec, target="hf", family="llama"):
        before, one = Checkpoint.open(tiny_model(family)), make_pass(*parse_spec(spec))
        context = PassContext(tmp_path / "step", {}, TOKENS, 0, lambda *_: None, [])
        step = one.apply(before, context)
        return before, step, units_of(one, make_target(target, {}), before, step)

    return make


def names(found):
    return [unit.name for unit in found]


def test_linears_are_units_and_those_that_the_target_fuses_are_one(units):
    _, _, single = units("rtn:group_size=32,skip=model.layers.0.mlp.*", "hf")
    first = "model.layers.0.self_attn"
    assert names(single)[:4] == [f"{first}.{name}_proj" for name in "qkvo"]
    assert len(single) == 4 + 7


def test_fused_linears_are_one_unit(units):
    _, _, fused = units("rtn:group_size=32", "vllm-int4")
    assert names(fused)[:3] == [
        "model.layers.0.self_attn.q_proj/k_proj/v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj/up_proj",
    ]
    assert len(fused) == 2 * 4


def test_a_pass_that_moves_scales_has_whole_blocks(units):
    _, _, blocks = units("awq:group_size=32")
    assert names(blocks) == ["model.layers.0", "model.layers.1"]
    assert blocks[0].prefixes == ("model.layers.0.",)


def test_tables_are_units(units):
    assert names(units("rtn:group_size=32,lm_head=true,skip=model.layers.*")[2]) == ["lm_head"]


def test_an_embedding_is_a_unit(units):
    assert names(units("embeddings")[2])[0] == "model.embed_tokens"


def test_zeros_are_taken_back_too(units):
    before, step, found = units("magnitude:skip=*.down_proj")
    found = with_errors(found, before, step, TOKENS, lambda *_: None)
    assert {unit.name.rpartition(".")[2] for unit in found if unit.error == 0} == {"down_proj"}
    assert all(unit.error > 0 for unit in found if not unit.name.endswith("down_proj"))


def test_the_error_is_that_of_the_block_with_this_layer_alone(units):
    before, step, found = units("rtn:group_size=32")
    measured = {unit.name: unit.error for unit in with_errors(found, before, step, TOKENS, lambda *_: None)}
    decoder, name = Decoder(before), "model.layers.0.mlp.down_proj"
    hidden = decoder.embed(TOKENS)
    layer = decoder.layer(before.block("layers.0"))
    with torch.no_grad():
        exact = layer(hidden, **decoder.context(0, 30))
        layer.mlp.down_proj.weight.copy_(step.read([f"{name}.weight"])[f"{name}.weight"].dequantize())
        changed = layer(hidden, **decoder.context(0, 30))
    expected = ((changed - exact).norm(dim=-1) / (exact - hidden).norm(dim=-1)).median()
    assert measured[name] == pytest.approx(float(expected), rel=1e-3)
