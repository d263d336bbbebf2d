import itertools

import pytest
import torch

from calibration import spool, walk
from calibration.walk import LayerWalk, Stream
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.families import FAMILIES
from compressor.memory import give_back

TOKENS = torch.randint(0, 256, (12, 96), generator=torch.Generator().manual_seed(0))
LLAMA_STAGES = [
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
]
STAGES = dict.fromkeys(FAMILIES, LLAMA_STAGES) | {
    "phi3": [("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)],
    "gpt2": [("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)],
}


@pytest.fixture
def small_batches(monkeypatch):
    """Several batches of samples, the last one not full."""
    monkeypatch.setattr("compressor.decoder.ELEMENTS_PER_BATCH", 5 * 96 * 64)


@torch.no_grad()
def inputs_of(decoder, block, hidden):
    """What each linear reads when transformers runs the layer in one go, float32 [tokens, in_features]."""
    layer, seen = decoder.layer(block), {}
    for name, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].flatten(0, 1)}))
    outputs = layer(hidden, **decoder.context(block.index, hidden.shape[1]))
    return seen, outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_see_what_the_whole_layer_shows(family, tiny_model, small_batches):
    decoder = Decoder(Checkpoint.open(tiny_model(family)))
    stream = Stream(decoder, TOKENS, torch.float32)
    for index in range(2):
        block = decoder.checkpoint.block(f"layers.{index}")
        seen, outputs = inputs_of(decoder, block, stream.hidden.clone())
        stages = list(stream.enter(block).stages())
        assert [stage.linears for stage in stages] == STAGES[family]
        for stage in stages:
            inputs = seen[stage.linears[0]]
            assert torch.allclose(stage.statistics.gram, inputs.T @ inputs / len(inputs), atol=1e-4)
            assert torch.allclose(stage.statistics.largest, inputs.abs().amax(0), atol=1e-5)
            assert stage.statistics.rows == len(inputs)
            assert stage.statistics.drift is None
        assert torch.allclose(stream.hidden, outputs, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_replaced_linears_are_what_later_stages_and_blocks_see(kept, tiny_model, small_batches, monkeypatch):
    monkeypatch.setattr(spool, "KEPT_BYTES", kept)
    decoder = Decoder(Checkpoint.open(tiny_model("llama")))
    stream = Stream(decoder, TOKENS, torch.float32)
    block = decoder.checkpoint.block("layers.0")
    halved = {name: weight / 2 for name, weight in block.weights.items() if name.endswith("_proj.weight")}
    seen, outputs = inputs_of(decoder, block.with_weights(halved), stream.hidden.clone())
    stepping = stream.enter(block)
    for stage in stepping.stages():
        inputs = seen[stage.linears[0]]
        assert torch.allclose(stage.statistics.gram, inputs.T @ inputs / len(inputs), atol=1e-4)
        for name in stage.linears:
            stepping.replace(name, halved[f"model.layers.0.{name}.weight"])
    assert torch.allclose(stream.hidden, outputs, atol=1e-5)


def test_drift_is_towards_the_layer_without_changes(tiny_model, small_batches):
    """Two layers, every linear changed; the first seven samples are followed through the original as well."""
    decoder = Decoder(Checkpoint.open(tiny_model("qwen2")))
    stream, changed = Stream(decoder, TOKENS, torch.float32, originals=7), decoder.embed(TOKENS)
    plain = changed[:7].clone()
    for index in range(2):
        block = decoder.checkpoint.block(f"layers.{index}")
        weights = {name: weight * 0.9 for name, weight in block.weights.items() if name.endswith("_proj.weight")}
        seen, changed = inputs_of(decoder, block.with_weights(weights), changed)
        references, plain = inputs_of(decoder, block, plain)
        stepping = stream.enter(block)
        for stage in stepping.stages():
            reference = references[stage.linears[0]]
            inputs = seen[stage.linears[0]][: len(reference)]
            drift = stage.statistics.drift
            weight = block.weights[f"model.layers.{index}.{stage.linears[0]}.weight"]
            assert drift.applied == (weight.shape[0] < weight.shape[1])
            through = weight if drift.applied else torch.eye(weight.shape[1])
            wanted = through @ (reference - inputs).T @ inputs / len(inputs)
            assert torch.allclose(drift.cross, wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-6)
            assert torch.allclose(drift.moments.matrix(), inputs.T @ inputs / len(inputs), atol=1e-4)
            everything = seen[stage.linears[0]]
            assert torch.allclose(stage.statistics.gram, everything.T @ everything / len(everything), atol=1e-4)
            for name in stage.linears:
                stepping.replace(name, weights[f"model.layers.{index}.{name}.weight"])
    assert float(wanted.abs().max()) > 1e-3


def test_lanes_share_weights_and_let_them_go(tiny_model, tmp_path, monkeypatch):
    """A block in 16 bits is in memory once, and not any more when it has been walked."""
    lanes = []
    monkeypatch.setattr(walk, "LayerWalk", lambda *given: lanes.extend(given[:2]) or LayerWalk(*given))
    checkpoint = Checkpoint.open(tiny_model("llama"))
    decoder = Decoder(checkpoint.rewrite(tmp_path / "half", lambda block: block, {}, torch.bfloat16))
    block = decoder.checkpoint.block("layers.0")
    stepping = Stream(decoder, TOKENS, torch.bfloat16, originals=2).enter(block)
    for lane in lanes:
        held = lane.layer.get_parameter("mlp.up_proj.weight")
        assert held.data_ptr() == block.weights["model.layers.0.mlp.up_proj.weight"].data_ptr()
    for _ in stepping.stages():
        pass
    for lane, (first, last) in itertools.product(lanes, [("self_attn.q_proj", "self_attn.o_proj"), LLAMA_STAGES[2]]):
        assert lane.layer.get_submodule(first).weight is None
        assert lane.layer.get_submodule(last).weight is None


def test_memory_is_given_back_around_the_statistics_of_wide_inputs(tiny_model, monkeypatch):
    given, now = [], []
    monkeypatch.setattr(walk, "give_back", lambda: given.append(list(now)) or give_back())
    monkeypatch.setattr(walk, "WIDE", 128)
    decoder = Decoder(Checkpoint.open(tiny_model("llama")))
    for stage in Stream(decoder, TOKENS, torch.float32).enter(decoder.checkpoint.block("layers.0")).stages():
        now.extend(stage.linears)
    before_moments = before_rounding = [name for stage in LLAMA_STAGES[:3] for name in stage]  # the MLP is 128 wide
    at_the_end = [*before_rounding, *LLAMA_STAGES[3]]
    assert given == [before_moments, before_rounding, at_the_end]


def test_bfloat16_is_close_to_float32(tiny_model):
    decoder = Decoder(Checkpoint.open(tiny_model("llama")))
    block = decoder.checkpoint.block("layers.0")
    grams = [
        [stage.statistics.gram for stage in Stream(decoder, TOKENS, dtype).enter(block).stages()]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for exact, rounded in zip(*grams, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.01


def test_head_reads_the_normed_states(tiny_model):
    decoder = Decoder(Checkpoint.open(tiny_model("llama")))
    stream = Stream(decoder, TOKENS, torch.float32)
    for index in range(2):
        for _ in stream.enter(decoder.checkpoint.block(f"layers.{index}")).stages():
            pass
    states = decoder.final_states(TOKENS).flatten(0, 1)
    assert torch.allclose(stream.at_head().gram, states.T @ states / len(states), atol=1e-3)
