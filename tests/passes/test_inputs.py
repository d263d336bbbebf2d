"""W8A8: rounded inputs on the integer passes, and the static scales they find on calibration text."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibration.ranges import RangeStream
from compressor import rounding
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.pass_ import Need, PassContext
from compressor.quantized import Activations, Scheme
from compressor.registry import make_pass, parse_spec
from passes.inputs import static_scale

TOKENS = torch.randint(0, 256, (4, 48), generator=torch.Generator().manual_seed(0))
W8A8 = "bits=8,group_size=channel"
DOWN = "model.layers.1.mlp.down_proj"


def run(spec, root, out, notes=None):
    one = make_pass(*parse_spec(spec))
    checkpoint = Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    tokens = TOKENS if one.needs else None
    seen = []
    context = PassContext(out, {}, tokens, 0, lambda *step: seen.append(step), [] if notes is None else notes)
    result = one.apply(checkpoint, context)
    assert dict(result.schemes) == planned
    assert seen
    return result


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS), decoder.head())


def edited(root, edit):
    tensors = load_file(root / "model.safetensors")
    edit(tensors)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_the_step_computes_in_transformers_what_it_is_measured_as(tiny_model, tmp_path, monkeypatch, name, activations):
    monkeypatch.setattr(rounding, "INT8_LARGEST", 127.5)  # as in their simulation of dynamic scales
    root = tiny_model("qwen2")
    step = run(f"{name}:{W8A8},activations={activations}", root, tmp_path / "step")
    expected = Scheme(8, None, activations=Activations(dynamic=activations == "dynamic"))
    assert set(step.schemes.values()) == {expected}
    ours = logits(step)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(step.root).eval()(TOKENS).logits, ours)
    assert 1e-3 < float((ours - logits(Checkpoint.open(root))).abs().mean()) < 0.1


@pytest.mark.parametrize("name", ["rtn", "gptq:precision=float32"])
def test_static_scales_make_the_largest_input_the_largest_code(tiny_model, tmp_path, name):
    root = tiny_model("llama", tied=False)
    head, _, options = name.partition(":")
    spec = f"{head}:{W8A8},activations=static,lm_head=true" + (f",{options}" if options else "")
    step = run(spec, root, tmp_path / "step")
    original = Checkpoint.open(root)
    stream = RangeStream(Decoder(original), TOKENS)
    checked = 0
    for before, after in zip(original.blocks(), step.blocks(), strict=True):
        for layer, largest in stream.observe(before).inputs.items():
            scale = after.weights[f"{layer}.weight"].input_scale
            # GPTQ sees the inputs that the rounded layers before give, which are a little different.
            torch.testing.assert_close(scale, largest / 127, rtol=2**-8 if head == "rtn" else 0.1, atol=0)
            assert float(scale.half()) == float(scale.bfloat16()) == float(scale)
            checked += 1
    assert checked == 15


def test_layers_that_read_the_same_input_have_the_same_scale(tiny_model, tmp_path):
    step = run(f"gptq:{W8A8},activations=static", tiny_model("llama"), tmp_path / "step")
    for block in step.blocks():
        if block.index is None:
            continue
        for group in step.architecture.fused_linears(block.index):
            assert len({float(block.weights[f"{layer}.weight"].input_scale) for layer in group}) == 1


def test_gptq_sees_the_rounded_inputs_of_the_layers_before(tiny_model, tmp_path):
    """With weights of few bits' worth of change kept equal, only rounded inputs can move a later layer's codes."""
    root = tiny_model("llama")
    plain, rounded = (
        run(f"gptq:{W8A8},precision=float32{more}", root, tmp_path / f"step{len(more)}")
        for more in ("", ",activations=dynamic")
    )
    first, last = "model.layers.0.self_attn.q_proj.weight", f"{DOWN}.weight"
    assert torch.equal(*(step.read([first])[first].codes for step in (plain, rounded)))
    assert not torch.equal(*(step.read([last])[last].codes for step in (plain, rounded)))


def test_only_static_activations_make_rtn_need_text():
    for activations, needs in (("none", set()), ("dynamic", set()), ("static", {Need.CALIBRATION})):
        one = make_pass(*parse_spec(f"rtn:{W8A8},activations={activations}"))
        assert one.needs == needs
    assert make_pass("gptq", {}).needs == {Need.CALIBRATION}


@pytest.mark.parametrize("options", ["", ":bits=8", ":group_size=channel", f":{W8A8},symmetric=false"])
def test_weights_that_no_int8_kernel_takes_are_refused(tiny_model, options):
    spec = f"rtn{options}{',' if options else ':'}activations=dynamic"
    architecture = Checkpoint.open(tiny_model("llama", hidden_size=128)).architecture
    with pytest.raises(InputError, match="needs int8 weights with one scale a channel") as caught:
        make_pass(*parse_spec(spec)).plan(architecture, {})
    assert caught.value.hint == f"rtn:{W8A8},activations=dynamic works."


def test_an_int4_head_reads_its_inputs_as_they_are(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    planned = make_pass(*parse_spec(f"rtn:{W8A8},activations=dynamic,lm_head=4")).plan(architecture, {})
    assert planned["lm_head"] == Scheme(4, None)
    assert planned[DOWN] == Scheme(8, None, activations=Activations())


def test_earlier_scales_are_kept(tiny_model, tmp_path):
    first = run(f"rtn:{W8A8},activations=static,skip=*.mlp.*", tiny_model("llama"), tmp_path / "first")
    second = run(f"rtn:{W8A8},activations=static,skip=*.self_attn.*", first.root, tmp_path / "second")
    name = "model.layers.1.self_attn.o_proj.weight"
    assert second.read([name])[name].same_bits(first.read([name])[name])
    assert second.read([f"{DOWN}.weight"])[f"{DOWN}.weight"].input_scale is not None


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_inputs_that_are_never_active_are_noted(tiny_model, tmp_path, name):
    gate = "model.layers.1.mlp.gate_proj.weight"

    def silence(tensors):
        tensors[gate].zero_()
        tensors[gate][0, 0] = 1.0  # a matrix of one value is refused; what this one reads is always 0
        tensors["model.layers.1.post_attention_layernorm.weight"][0] = 0

    root = edited(tiny_model("llama"), silence)
    notes = []
    step = run(f"{name}:{W8A8},activations=static", root, tmp_path / "step", notes)
    assert f"inputs of {DOWN} were all zero on the calibration text; their range is taken as 1" in notes
    scale = step.read([f"{DOWN}.weight"])[f"{DOWN}.weight"].input_scale
    assert float(scale) == pytest.approx(1 / 127, rel=2**-8)


@pytest.mark.parametrize("spec", ["rtn", "gptq", "fp8"])
def test_values_that_are_not_finite_name_the_layer(tiny_model, tmp_path, spec):
    def overflow(tensors):
        for name in ("gate", "up"):
            tensors[f"model.layers.1.mlp.{name}_proj.weight"] *= 1e30

    root = edited(tiny_model("llama"), overflow)
    options = "activations=static" if spec == "fp8" else f"{W8A8},activations=static"
    # The weights themselves are too large for a scale; they are skipped, and what they make is not.
    with pytest.raises(RunError, match=rf"inputs of {DOWN} hold NaN or Inf"):
        run(f"{spec}:{options},skip=*.gate_proj+*.up_proj", root, tmp_path / "step")


def test_static_scale():
    notes = []
    for kind, levels in (("int", 127), ("float", 448)):
        activations = Activations(type=kind, dynamic=False)
        assert float(static_scale(torch.tensor(levels * 0.5), activations, "inputs", notes)) == 0.5
    assert notes == []
    with pytest.raises(RunError, match="The inputs of x hold NaN"):
        static_scale(torch.tensor(torch.nan), Activations(), "inputs of x", notes)
