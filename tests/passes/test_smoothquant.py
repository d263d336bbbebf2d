import pytest
import torch
from torch import nn

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass, parse_spec
from passes.smoothquant import smoothing_scales

TOKENS = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
W8A8 = {"bits": 8, "group_size": "channel", "activations": "dynamic"}
EVERYTHING = "smoothquant:o_proj=true,down_proj=true,precision=float32"


def run(spec, root, out):
    one, checkpoint = make_pass(*parse_spec(spec)), Checkpoint.open(root)
    assert one.plan(checkpoint.architecture, checkpoint.schemes) == {}
    return one.apply(checkpoint, PassContext(out, {"key": "k"}, TOKENS, 0, lambda *_: None, []))


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS), decoder.head())


def observed(root):
    """Absolute maximum of every input feature of every linear, as transformers runs the model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    largest = {}

    def watch(name):
        def hook(_, inputs):
            largest[name] = inputs[0].abs().flatten(0, -2).amax(0)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        model(TOKENS)
    return model, largest


def test_scales_are_those_of_the_paper(tiny_model, tmp_path):
    """One channel at a time, as equation 4 has it, from what transformers' own layers see."""
    root = tiny_model("llama")
    step = run("smoothquant:alpha=0.7,precision=float32", root, tmp_path / "step")
    model, largest = observed(root)
    smoothed = {name: weight for block in step.blocks() for name, weight in block.weights.items()}
    for layer in (0, 1):
        for norm, names in {
            "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
        }.items():
            prefix = f"model.layers.{layer}."
            gain = model.get_submodule(prefix + norm).weight.detach()
            weights = {name: model.get_submodule(prefix + name).weight.detach() for name in names}
            for channel in range(64):
                most = max(float(weight[:, channel].abs().max()) for weight in weights.values())
                scale = float(largest[prefix + names[0]][channel]) ** 0.7 / most**0.3
                kept = smoothed[f"{prefix}{norm}.weight"][channel]
                # the gain is brought to the nearest bfloat16 number, and the scale follows it
                assert float(kept) == pytest.approx(float(gain[channel]) / scale, rel=2**-8)
                for name, weight in weights.items():
                    column = smoothed[f"{prefix}{name}.weight"][:, channel]
                    torch.testing.assert_close(column * kept, weight[:, channel] * gain[channel], atol=0, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_float_model_computes_what_it_did(tiny_model, tmp_path, family):
    root = tiny_model(family)
    before = Checkpoint.open(root)
    shape = before.architecture
    after = run(EVERYTHING if shape.gated else "smoothquant:o_proj=true", root, tmp_path / "step")
    torch.testing.assert_close(logits(after), logits(before), atol=1e-4, rtol=1e-5)
    changed = [name for name, weight in before.block("layers.0").weights.items()
               if not torch.equal(weight, after.block("layers.0").weights[name])]  # fmt: skip
    linears = len(shape.block_linears(0)) - (not shape.gated)
    assert len(changed) >= 2 + linears, "two norms and all linears that can be"


def test_half_of_the_outliers_moves_into_the_weights(tiny_model, tmp_path):
    """At alpha 0.5 a feature is as large in the inputs as in the weights: sqrt(max|x| max|w|)."""
    model, largest = observed(run("smoothquant:precision=float32", tiny_model("llama"), tmp_path / "step").root)
    for readers in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]):
        names = [f"model.layers.1.{reader}" for reader in readers]
        weights = torch.stack([model.get_submodule(name).weight.abs().amax(0) for name in names]).amax(0)
        torch.testing.assert_close(largest[names[0]], weights, atol=0, rtol=0.01)


def test_by_default_only_norms_take_part(tiny_model, tmp_path):
    root = tiny_model("llama")
    step = run("smoothquant", root, tmp_path / "step")
    before, after = (one.block("layers.0").weights for one in (Checkpoint.open(root), step))
    same = [name.split(".")[-2] for name in before if torch.equal(before[name], after[name])]
    assert same == ["o_proj", "down_proj"]


def test_features_without_activity_or_weights_keep_their_scale():
    scales = smoothing_scales(torch.tensor([0.0, 4.0, 9.0]), torch.tensor([2.0, 0.0, 4.0]), 0.5)
    assert scales.tolist() == [1.0, 1.0, 1.5]


def test_a_16_bit_model_is_kept_in_float32_until_it_is_rounded(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float16).save_pretrained(tmp_path / "model")
    step = run("smoothquant", tmp_path / "model", tmp_path / "step")
    assert step.dtype == torch.float32
    torch.testing.assert_close(logits(step), logits(Checkpoint.open(tmp_path / "model")), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_weights_and_activations_in_int8_lose_less_after_it(tiny_model, tmp_path, rounding):
    from safetensors.torch import load_file, save_file

    root = tiny_model("llama")
    weights = load_file(root / "model.safetensors")
    for layer in (0, 1):
        weights[f"model.layers.{layer}.input_layernorm.weight"][[3, 30]] *= 40
        for linear in "qkv":
            weights[f"model.layers.{layer}.self_attn.{linear}_proj.weight"][:, [3, 30]] *= 0.05
    save_file(weights, root / "model.safetensors", metadata={"format": "pt"})

    def error(start, out):
        one, checkpoint = make_pass(rounding, W8A8), Checkpoint.open(start)
        step = one.apply(checkpoint, PassContext(out, {"key": "k"}, TOKENS, 0, lambda *_: None, []))
        assert step.schemes["model.layers.0.self_attn.q_proj"].activations is not None
        return float((logits(step) - logits(Checkpoint.open(root))).square().mean())

    smoothed = run("smoothquant", root, tmp_path / "smoothed")
    assert error(smoothed.root, tmp_path / "after") < 0.5 * error(root, tmp_path / "plain")


def test_what_is_quantized_already_is_refused(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="int8 channel symmetric already"):
        make_pass("smoothquant", {}).plan(shape, {"model.layers.1.mlp.up_proj": Scheme(8, None)})
    make_pass("smoothquant", {}).plan(shape, {"model.layers.1.mlp.down_proj": Scheme(8, None)})


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_outside_its_range_is_refused(tiny_model, alpha):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match=f"alpha={alpha} is outside"):
        make_pass("smoothquant", {"alpha": alpha}).plan(shape, {})
