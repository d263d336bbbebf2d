import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.checkpoint import Checkpoint
from compressor.cli import main
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec
from passes.awq import best_scales, candidates, gram_blocks, output_errors
from passes.folding import Fold
from passes.grid import fit_grid, quantize

TOKENS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))
PLAIN = Fold("norm", ("linear",), sharing=1, width=64)
SHARED = Fold("v_proj", ("o_proj",), sharing=2, width=16)


def problem(seed, outliers=3):
    """A weight [24, 64] and correlated inputs [512, 64], a few features of which are far larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator) / 8
    inputs[:, torch.randperm(64, generator=generator)[:outliers]] *= 20
    return torch.randn(24, 64, generator=generator), inputs


def gram_of(inputs):
    return inputs.T @ inputs / len(inputs)


def nearest(weight, scheme):
    return quantize(weight, scheme, fit_grid(weight, scheme, None, search=False)).dequantize()


def run(spec, root, out, tokens=TOKENS):
    one, checkpoint = make_pass(*parse_spec(spec)), Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    notes: list[str] = []
    result = one.apply(checkpoint, PassContext(out, {"key": "k"}, tokens, 0, lambda *_: None, notes))
    assert dict(result.schemes) == planned, "the plan is what is done"
    return result, notes


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())


def divergence(step, root):
    original, changed = (logits(checkpoint).log_softmax(-1) for checkpoint in (Checkpoint.open(root), step))
    return float(torch.nn.functional.kl_div(changed, original, reduction="batchmean", log_target=True))


def with_outliers(root):
    """The model folder with some gains of its norms, and so some features of what its linears read, far larger."""
    from safetensors.torch import load_file, save_file

    path = root / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if name.endswith("layernorm.weight"):
            weights[name][[5, 17, 40]] *= 15
            linears = ("q_proj", "k_proj", "v_proj") if "input" in name else ("gate_proj", "up_proj")
            layer = name.rsplit(".", 2)[0]
            for linear in weights:
                if linear.startswith(layer) and linear.split(".")[-2] in linears and linear.endswith("weight"):
                    weights[linear][:, [5, 17, 40]] *= 0.3
    save_file(weights, path, metadata={"format": "pt"})
    return root


# ---- the search


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_from_second_moments_is_the_error_on_the_tokens(symmetric):
    weight, inputs = problem(0)
    scheme = Scheme(4, 32, symmetric)
    scales = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    errors = output_errors(weight, gram_of(inputs), scales, scheme)
    for scale, error in zip(scales, errors, strict=True):
        rounded = nearest(weight * scale, scheme)
        on_tokens = ((inputs / scale) @ rounded.T - inputs @ weight.T).square().sum(1).mean()
        assert float(error) == pytest.approx(float(on_tokens), rel=1e-4)


def test_rows_taken_in_parts_add_up(monkeypatch):
    weight, inputs = problem(0)
    scales = candidates(gram_of(inputs).diagonal().sqrt(), None)
    whole = output_errors(weight, gram_of(inputs), scales, Scheme(4, 32))
    monkeypatch.setattr("passes.awq.ELEMENTS_AT_ONCE", 5 * scales.numel())
    torch.testing.assert_close(output_errors(weight, gram_of(inputs), scales, Scheme(4, 32)), whole)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), symmetric=st.booleans(), duo=st.booleans(), fold=st.sampled_from([PLAIN, SHARED]),
    group_size=st.sampled_from([32, None]), outliers=st.integers(0, 8),
)  # fmt: skip
def test_the_search_is_never_worse_than_no_scaling(seed, symmetric, duo, fold, group_size, outliers):
    weight, inputs = problem(seed, outliers)
    scheme, gram = Scheme(4, group_size, symmetric), gram_of(inputs)
    scales = fold.by_reader(best_scales(weight, gram, fold, scheme, duo_scaling=duo, dtype=torch.float32))
    found, none = output_errors(weight, gram, torch.stack([scales, torch.ones(64)]), scheme)
    assert found <= none * (1 + 1e-6)


@pytest.mark.parametrize("duo", [True, False])
def test_outliers_get_finer_steps(duo):
    weight, inputs = problem(7)
    gram, scheme = gram_of(inputs), Scheme(4, 32)
    scales = best_scales(weight, gram, PLAIN, scheme, duo_scaling=duo, dtype=torch.float32)
    found, none = output_errors(weight, gram, torch.stack([scales, torch.ones(64)]), scheme)
    assert found < 0.75 * none
    assert set(scales.topk(3).indices.tolist()) == set(gram.diagonal().topk(3).indices.tolist())


def test_candidates_are_those_of_the_paper():
    activity = torch.tensor([1.0, 2.0, 8.0])
    tried = candidates(activity, None)
    assert tried.shape == (20, 3)
    assert torch.equal(tried[0], torch.ones(3))
    raw = activity**0.55
    torch.testing.assert_close(tried[11], raw / (raw.max() * raw.min()).sqrt())
    share = torch.tensor([0.5, 0.1, 0.2])
    raw = activity**0.55 / share**0.45
    torch.testing.assert_close(candidates(activity, share)[31], raw / (raw.max() * raw.min()).sqrt())


def test_features_that_were_never_active_keep_their_scale():
    tried = candidates(torch.tensor([0.0, 2.0, 8.0]), torch.tensor([0.3, 0.0, 0.2]))
    assert torch.isfinite(tried).all()
    assert (tried[:, 0] == 1).all()
    assert (tried[20:, 1] == 1).all()
    assert torch.equal(candidates(torch.zeros(3), None), torch.ones(20, 3))


def test_gram_blocks_are_what_each_group_sees():
    _, inputs = problem(2)
    scales = torch.rand(64, generator=torch.Generator().manual_seed(3)) + 0.5
    blocks = gram_blocks(gram_of(inputs), scales, 16)
    for index, block in enumerate(blocks):
        group = slice(16 * index, 16 * index + 16)
        torch.testing.assert_close(block, gram_of(inputs[:, group] / scales[group]))


# ---- the pass


@pytest.mark.parametrize("family", FAMILIES)
def test_without_rounding_the_model_computes_what_it_did(tiny_model, tmp_path, family):
    root = with_outliers(tiny_model(family))
    step, _ = run("awq:group_size=32,round=false", root, tmp_path / "step")
    assert not step.schemes
    before, after = (one.block("layers.1").weights for one in (Checkpoint.open(root), step))
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    modules, gated = step.architecture.modules, step.architecture.gated
    wanted = {modules.attention.norm, *modules.attention.first, modules.attention.last, *modules.mlp.first}
    assert changed >= {modules.block(1) + name for name in (*wanted, *([modules.mlp.last] if gated else []))}
    torch.testing.assert_close(logits(step), logits(Checkpoint.open(root)), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.transposed])
def test_the_step_opens_in_transformers_with_equal_logits(tiny_model, tmp_path, family):
    from transformers import AutoModelForCausalLM

    step, _ = run("awq:group_size=32", with_outliers(tiny_model(family)), tmp_path / "step")
    assert set(step.schemes) == set(step.architecture.linears()) - {"lm_head"}
    model = AutoModelForCausalLM.from_pretrained(step.root, attn_implementation="eager")
    torch.testing.assert_close(model(TOKENS[:2]).logits, logits(step), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("options", ["group_size=32", "group_size=32,symmetric=false", "group_size=channel"])
def test_awq_is_closer_than_rounding_to_nearest(tiny_model, tmp_path, options):
    root = with_outliers(tiny_model("llama"))
    rtn, _ = run(f"rtn:{options},scale_search=true", root, tmp_path / "rtn")
    awq, _ = run(f"awq:{options}", root, tmp_path / "awq")
    assert divergence(awq, root) < 0.6 * divergence(rtn, root)


def test_clipping_helps_by_itself(tiny_model, tmp_path):
    root = tiny_model("llama")
    loose, _ = run("awq:group_size=64,clip=false", root, tmp_path / "loose")
    clipped, _ = run("awq:group_size=64", root, tmp_path / "clipped")
    assert divergence(clipped, root) < divergence(loose, root)


def test_what_stays_16_bit_is_not_rounded_again(tiny_model, tmp_path):
    """Gains and biases of a 16-bit model come out exactly as those of the same model in float32."""
    from transformers import AutoModelForCausalLM

    root = tiny_model("qwen2")
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16).to(dtype)
        model.save_pretrained(tmp_path / str(dtype))
    half, _ = run("awq:group_size=32", tmp_path / str(torch.bfloat16), tmp_path / "half")
    full, _ = run("awq:group_size=32", tmp_path / str(torch.float32), tmp_path / "full")
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    for first, second in zip(half.blocks(), full.blocks(), strict=True):
        for name, weight in first.weights.items():
            if isinstance(weight, QuantizedWeight):
                assert weight.same_bits(second.weights[name])
            else:
                torch.testing.assert_close(weight.float(), second.weights[name], atol=0, rtol=3e-7)


def test_between_two_passes_weights_are_float32(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    step, _ = run("awq:group_size=32,round=false", tmp_path / "model", tmp_path / "step")
    assert step.dtype == torch.float32
    torch.testing.assert_close(logits(step), logits(Checkpoint.open(tmp_path / "model")), atol=1e-4, rtol=1e-5)


def test_skipped_layers_beside_rounded_ones_stay_exact_and_are_named(tiny_model, tmp_path):
    root = with_outliers(tiny_model("llama"))
    skipped = "model.layers.0.self_attn.q_proj"
    step, notes = run(f"awq:group_size=32,skip={skipped}+*.down_proj+*.gate_proj+*.up_proj", root, tmp_path / "step")
    assert notes == [f"skipped, but re-scaled together with layers that are rounded: {skipped}"]
    before, after = (one.block("layers.0").weights for one in (Checkpoint.open(root), step))
    norm, mlp = "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[norm], after[norm])
    name = skipped + ".weight"
    torch.testing.assert_close(after[name] * after[norm], before[name] * before[norm], atol=0, rtol=1e-6)
    assert torch.equal(before[mlp], after[mlp]), "where nothing is rounded nothing is re-scaled"


def test_an_lm_head_is_rounded_and_the_final_norm_kept(tiny_model, tmp_path):
    root = tiny_model("llama", tied=True)
    step, _ = run("awq:group_size=32,lm_head=8", root, tmp_path / "step")
    head, original = step.block("head").weights, Checkpoint.open(root)
    assert head["lm_head.weight"].scheme == Scheme(8, 32)
    assert torch.equal(head["model.norm.weight"], original.block("head").weights["model.norm.weight"])


def test_it_makes_gptq_better_through_the_command_line(tiny_model, tmp_path, capsys):
    root, text, out = with_outliers(tiny_model("llama")), tmp_path / "text.txt", tmp_path / "out"
    text.write_text("\n".join(f"The fox sees the hen near mill {n}; number {n * n} is called." for n in range(200)))
    passes = ["--pass", "awq:group_size=32,round=false", "--pass", "gptq:group_size=32"]
    words = ["compress", root, "-t", "hf", "-o", out, "--calibration", text, "--samples", 8, "--length", 64, *passes]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words, "--measure", "none"]])
    assert stop.value.code == 0, capsys.readouterr().err
    assert [path.name for path in sorted((out / "steps").iterdir())] == ["01-awq", "02-gptq"]
    scaled, rounded = (Checkpoint.open(path) for path in sorted((out / "steps").iterdir()))
    assert not scaled.schemes
    assert set(rounded.schemes.values()) == {Scheme(4, 32)}
    assert json.loads((out / "ledger.json").read_text())["artifact"]["verified"]["mismatches"] == []
    assert 0 < divergence(rounded, root) < divergence(run("rtn:group_size=32", root, tmp_path / "rtn")[0], root)


# ---- refusals


def architecture_of(root):
    return Checkpoint.open(root).architecture


def test_a_layer_that_is_quantized_already_is_refused(tiny_model):
    shape = architecture_of(tiny_model("llama"))
    done = {"model.layers.0.self_attn.q_proj": Scheme(4, 32)}
    with pytest.raises(InputError, match="rounded once"):
        make_pass("awq", {"group_size": 32}).plan(shape, done)
    with pytest.raises(InputError, match=r"awq re-scales model\.layers\.0\.self_attn\.q_proj"):
        make_pass("awq", {"group_size": 32, "skip": ["*.q_proj"]}).plan(shape, done)
    attention = ["*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj"]
    make_pass("awq", {"group_size": 32, "skip": attention}).plan(shape, done)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 32, "skip": ["*.dwon_proj"]}, "matches no layer"),
        ({"group_size": 128}, "does not divide"),
        ({"group_size": 32, "round": False, "lm_head": True}, "leaves to another pass"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model, options, message):
    with pytest.raises(InputError, match=message):
        make_pass("awq", options).plan(architecture_of(tiny_model("llama")), {})


def test_a_model_that_overflows_is_named(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    root = tiny_model("llama")
    weights = load_file(root / "model.safetensors")
    weights["model.layers.0.post_attention_layernorm.weight"][:] = 3e38
    save_file(weights, root / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"layers\.0\.mlp\.gate_proj hold NaN or Inf"):
        run("awq:group_size=32", root, tmp_path / "step")
