import json

import pytest
import torch

from compressor.checkpoint import Block, Checkpoint
from compressor.cli import main
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight
from compressor.registry import make_pass, parse_spec
from passes.tune import LearnedLayer, draw_samples, error_left, summary

TOKENS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))
QUICK = "group_size=32,precision=float32,iterations=10,batch_size=4"


def run(spec, root, out, seed=0):
    """The step that a pass makes, its notes and the progress it told."""
    one = make_pass(*parse_spec(spec))
    checkpoint = Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    notes, progress = [], []
    context = PassContext(out, {"key": "k"}, TOKENS, seed, lambda *told: progress.append(told), notes)
    result = one.apply(checkpoint, context)
    assert dict(result.schemes) == planned, "the plan is what is done"
    return result, notes, progress


def first_block_error(step, root):
    """Mean squared error of the first block's outputs, which reads the same in the step and in the original."""
    outputs = []
    for decoder in (Decoder(step), Decoder(Checkpoint.open(root))):
        hidden = decoder.embed(TOKENS)
        decoder.run(decoder.layer(decoder.checkpoint.block("layers.0")), 0, hidden)
        outputs.append(hidden)
    return float((outputs[0] - outputs[1]).square().mean())


def quantized_weights(step):
    return {n: w for block in step.blocks() for n, w in block.weights.items() if isinstance(w, QuantizedWeight)}


@pytest.mark.parametrize("options", ["symmetric=true", "symmetric=false", "bits=8"])
def test_a_block_is_closer_to_the_original_than_rounding_to_nearest_leaves_it(tiny_model, tmp_path, options):
    root = tiny_model("llama")
    nearest, *_ = run(f"rtn:group_size=32,{options},scale_search=true", root, tmp_path / "nearest")
    tuned, notes, _ = run(f"tune:{QUICK},start=nearest,{options}", root, tmp_path / "tuned")
    assert first_block_error(tuned, root) < 0.8 * first_block_error(nearest, root)
    assert "stay as they started" not in notes[-1]


@pytest.mark.parametrize("options", ["symmetric=true", "symmetric=false", "bits=8"])
def test_a_block_is_no_further_from_the_original_than_gptq_leaves_it(tiny_model, tmp_path, options):
    root = tiny_model("llama")
    solved, *_ = run(f"gptq:group_size=32,precision=float32,{options}", root, tmp_path / "solved")
    tuned, *_ = run(f"tune:{QUICK},{options}", root, tmp_path / "tuned")
    assert first_block_error(tuned, root) <= first_block_error(solved, root) * (1 + 1e-6)


@pytest.mark.parametrize("options", ["bits=4", "bits=8,symmetric=false", "group_size=channel,precision=bfloat16"])
def test_the_step_opens_in_transformers_with_equal_logits(tiny_model, tmp_path, options):
    from transformers import AutoModelForCausalLM

    result, *_ = run(f"tune:{QUICK},{options}", tiny_model("llama"), tmp_path / "step")
    decoder = Decoder(result)
    ours = decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())
    model = AutoModelForCausalLM.from_pretrained(result.root)
    torch.testing.assert_close(model(TOKENS[:2]).logits, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_every_family_is_learned(tiny_model, tmp_path, family):
    window = {"sliding_window": 8} if family == "mistral" else {}
    _, notes, _ = run(f"tune:{QUICK},start=nearest", tiny_model(family, **window), tmp_path / "step")
    assert "stay as they started" not in notes[-1]


def test_codes_are_in_range_and_scales_fit_both_16_bit_types(tiny_model, tmp_path):
    result, *_ = run(f"tune:{QUICK},start=nearest,symmetric=false", tiny_model("llama"), tmp_path / "step")
    for weight in quantized_weights(result).values():
        assert weight.zero_points is not None
        for codes in (weight.codes, weight.zero_points):
            assert (codes >= -8).all()
            assert (codes <= 7).all()
        for dtype in (torch.float16, torch.bfloat16):
            assert torch.equal(weight.scales.to(dtype).float(), weight.scales)


def test_the_seed_decides_every_bit(tiny_model, tmp_path):
    root = tiny_model("llama")
    first, same, other = (
        quantized_weights(run(f"tune:{QUICK},start=nearest", root, tmp_path / str(number), seed)[0])
        for number, seed in enumerate((7, 7, 8))
    )
    assert all(first[name].same_bits(same[name]) for name in first)
    assert not all(first[name].same_bits(other[name]) for name in first)


def test_a_start_that_learning_makes_worse_is_kept(tiny_model, tmp_path):
    """One step at the highest rate moves every weight by a step: a hopeless change."""
    root = tiny_model("llama")
    start, *_ = run("gptq:bits=8,group_size=32,precision=float32", root, tmp_path / "start")
    spec = "tune:bits=8,group_size=32,precision=float32,iterations=1,learning_rate=1"
    tuned, notes, _ = run(spec, root, tmp_path / "tuned")
    starts = quantized_weights(start)
    assert all(weight.same_bits(starts[name]) for name, weight in quantized_weights(tuned).items())
    assert notes[-1].endswith("2 blocks stay as they started")


def test_skipped_layers_keep_their_bytes_and_a_skipped_block_is_only_run(tiny_model, tmp_path):
    root = tiny_model("llama")
    result, notes, progress = run(f"tune:{QUICK},skip=model.layers.0.*+down_proj", root, tmp_path / "step")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(result.read([name])[name], Checkpoint.open(root).read([name])[name])
    assert sorted(result.schemes) == [
        f"model.layers.1.{name}"
        for name in ("mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{letter}_proj" for letter in "koqv"))
    ]
    assert progress == [("tune", step, 20) for step in range(11, 21)]
    assert len(notes) == 1


def test_an_lm_head_is_left_where_the_start_puts_it(tiny_model, tmp_path):
    root = tiny_model("llama")
    tuned, *_ = run(f"tune:{QUICK},skip=model.layers.*,lm_head=true", root, tmp_path / "tuned")
    solved, *_ = run("gptq:group_size=32,precision=float32,skip=model.layers.*,lm_head=true", root, tmp_path / "solved")
    name = "lm_head.weight"
    assert tuned.read([name])[name].same_bits(solved.read([name])[name])


def test_what_the_layer_computes_while_learning_is_what_the_stored_block_computes(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("qwen3"))
    decoder, block = Decoder(checkpoint), checkpoint.block("layers.1")
    rounded = make_pass("rtn", {"group_size": 32}).edit(block, checkpoint, None)
    layer = LearnedLayer(decoder, block, rounded, torch.float32)
    inputs = decoder.embed(TOKENS)
    for _ in range(3):
        layer.step(inputs, torch.zeros_like(inputs), rate=0.2)
    found, expected = inputs.clone(), inputs.clone()
    layer.run(found)
    decoder.run(decoder.layer(block.with_weights(layer.quantized())), 1, expected)
    assert torch.equal(found, expected)


def test_samples_are_drawn_equally_often():
    draws = draw_samples(samples=6, steps=9, batch_size=4, seed=1)
    assert draws.shape == (9, 4)
    assert draws.flatten().bincount().tolist() == [6] * 6
    assert torch.equal(draws, draw_samples(6, 9, 4, seed=1))
    assert not torch.equal(draws, draw_samples(6, 9, 4, seed=2))
    assert draw_samples(samples=3, steps=2, batch_size=8, seed=0).sort().values.tolist() == [[0, 1, 2]] * 2


def test_the_error_that_is_left():
    block, targets = Block("layers.3", 3, {}), torch.zeros(2, 4, 8)
    assert error_left(block, targets + 2, targets + 1, targets) == 0.25
    assert error_left(block, targets + 1, targets + 2, targets) == 1
    assert error_left(block, targets, targets, targets) == 1
    with pytest.raises(RunError, match=r"outputs of layers\.3 hold NaN or Inf"):
        error_left(block, targets, targets + torch.nan, targets)


def test_the_note_says_how_much_error_is_left():
    assert summary([0.5, 0.125]) == ["learning left 25% of the squared error of blocks' outputs (12% to 50%)"]
    assert summary([1.0])[0].endswith("; 1 blocks stay as they started")
    assert summary([]) == []


def test_outputs_that_overflow_name_the_block(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    root = tiny_model("llama")
    tensors = load_file(root / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e38
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"layers\.1 hold NaN or Inf"):
        run(f"tune:{QUICK},skip=gate_proj+up_proj+down_proj", root, tmp_path / "step")
    assert not (tmp_path / "step").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("iterations=0", "iterations=0 is less than 1"),
        ("batch_size=-1", "batch_size=-1 is less than 1"),
        ("learning_rate=0", r"learning_rate=0\.0 is outside"),
        ("learning_rate=1.5", r"learning_rate=1\.5 is outside"),
        ("group_size=128", "does not divide the input width 64"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(tiny_model, option, message):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match=message):
        make_pass(*parse_spec(f"tune:group_size=32,{option}")).plan(shape, {})


def test_a_run_of_the_command_line_verifies(tiny_model, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    words = ["compress", tiny_model("llama"), "-t", "hf", "-o", out, "--calibration", text, "--samples", 8]
    words += ["--length", 32, "--measure", "none", "--pass", f"tune:{QUICK}"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["artifact"]["verified"]["mismatches"] == []
    assert "learning left" in ledger["steps"][1]["notes"][-1]
