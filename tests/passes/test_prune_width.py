import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from calibration.moments import SecondMoments
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, attention_implementation
from compressor.errors import InputError, RunError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass
from passes.narrowing import contributions, most, rows_of, spread
from passes.width import Widths, candidates, narrow_config, share_left_out

TOKENS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))
SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 256}


def prune(root, out, notes=None, **options):
    one, checkpoint = make_pass("prune-width", {"precision": "float32", **options}), Checkpoint.open(root)
    one.plan(checkpoint.architecture, checkpoint.schemes)
    step = one.apply(checkpoint, PassContext(out, {}, TOKENS, 0, lambda *_: None, [] if notes is None else notes))
    planned = one.reshaped(checkpoint.architecture)
    if options.get("parts", "both") != "both":
        assert step.architecture == planned
    return step


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())


def without_columns(root, step, out):
    """The original with zeros in the columns that `step` does not have: what an unfitted step computes."""
    whole, model = Checkpoint.open(root), AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    for index in range(whole.architecture.layers):
        for branch in whole.architecture.modules.branches:
            name = f"{whole.architecture.modules.block(index)}{branch.last}.weight"
            before, after = whole.read([name])[name], step.read([name])[name]
            gone = ~(before.unsqueeze(2) == after.unsqueeze(1)).all(0).any(1)
            weight = model.get_parameter(name).data
            (weight.T if before.shape != weight.shape or whole.architecture.transposed else weight)[:, gone] = 0
    model.save_pretrained(out)
    return Checkpoint.open(out)


@pytest.mark.parametrize("parts", ["mlp", "heads"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_computes_what_the_model_does_without_what_went(tiny_model, tmp_path, family, parts):
    if family == "gpt2" and parts == "heads":
        pytest.skip("has no setting for it")
    root = tiny_model(family, **({"n_inner": 256} if family == "gpt2" else SHAPE))
    size = {"fraction": 0.1, "multiple": 8} if parts == "heads" else {"fraction": 0.3}
    step = prune(root, tmp_path / "step", parts=parts, **size, iterations=0, propagation=False)
    torch.testing.assert_close(
        logits(step), logits(without_columns(root, step, tmp_path / "zeros")), atol=1e-4, rtol=1e-3
    )
    attention = attention_implementation(step.architecture)
    model = AutoModelForCausalLM.from_pretrained(step.root, attn_implementation=attention)
    torch.testing.assert_close(model(TOKENS[:2]).logits, logits(step), atol=1e-3, rtol=1e-3)
    assert step.architecture.head_dim == Checkpoint.open(root).architecture.head_dim
    if parts == "heads":
        assert (step.architecture.heads, step.architecture.kv_heads) == (4, 2)
        assert json.loads((step.root / "config.json").read_text())["head_dim"] == 8


def test_what_contributes_little_goes(tiny_model, tmp_path):
    root = tiny_model("llama", **SHAPE)
    model = AutoModelForCausalLM.from_pretrained(root)
    layer = model.model.layers[1]
    layer.mlp.up_proj.weight.data[5:69] *= 1e-3
    layer.self_attn.v_proj.weight.data[8:24] *= 1e-3  # groups 1 and 2
    model.save_pretrained(root)
    step = prune(root, tmp_path / "mlp", parts="mlp", fraction=0.2, multiple=64)
    name = "model.layers.1.mlp.up_proj.weight"
    kept = [*range(5), *range(69, 256)]
    assert torch.equal(step.read([name])[name], Checkpoint.open(root).read([name])[name][kept])
    step = prune(root, tmp_path / "heads", parts="heads", fraction=0.1, multiple=8)
    name = "model.layers.1.self_attn.k_proj.weight"
    kept = [*range(8), *range(24, 32)]
    assert torch.equal(step.read([name])[name], Checkpoint.open(root).read([name])[name][kept])


def test_fitting_what_is_left_comes_closer(tiny_model, tmp_path):
    root = tiny_model("llama", **SHAPE)
    whole = logits(Checkpoint.open(root))

    def distance(**options):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        return float((logits(prune(root, out, parts="mlp", fraction=0.3, **options)) - whole).norm())

    assert distance() < 0.9 * distance(iterations=0, propagation=False)


def test_contributions_are_mean_squares_of_what_reaches_the_outputs():
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(6, 12, generator=generator), torch.randn(50, 12, generator=generator)
    moments = SecondMoments.of(inputs.T @ inputs / 50)
    for width in (1, 4):
        parts = [inputs[:, n : n + width] @ weight[:, n : n + width].T for n in range(0, 12, width)]
        expected = torch.stack([part.square().sum(1).mean() for part in parts])
        torch.testing.assert_close(contributions(weight, moments, width), expected)


def test_indices():
    assert most(torch.tensor([3.0, 1, 5, 4]), 2).tolist() == [2, 3]
    assert spread(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]
    parts = torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([1])
    assert rows_of(("qkv",), (4, 2, 2), parts)["qkv"].tolist() == [0, 3, 5, 7]
    assert rows_of(("q", "k", "v"), (4, 2, 2), parts)["k"].tolist() == [1]


def test_the_best_split_is_searched(tiny_model, tmp_path):
    """A model whose heads do nothing loses heads, one whose channels do nothing loses channels."""
    for part, kv_heads in (("self_attn.o_proj", 1), ("mlp.down_proj", 4)):
        root, notes = tiny_model("llama", **SHAPE), []
        model = AutoModelForCausalLM.from_pretrained(root)
        for layer in model.model.layers:
            layer.get_submodule(part).weight.data *= 1e-3
        model.save_pretrained(root)
        step = prune(root, tmp_path / part, notes, fraction=0.25, multiple=8)
        assert step.architecture.kv_heads == kv_heads
        assert "for each split: " in notes[0]
        assert "25.0% asked for" in notes[1]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_splits_have_the_size_and_the_multiples_that_were_asked_for(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", **SHAPE)).architecture
    found = candidates(architecture, 0.25, "both", 8)
    assert [widths.kv_heads for widths in found] == [4, 2, 1]  # 3 would make 6 heads, which do not divide 64
    for widths in found:
        assert widths.channels % 8 == 0
        assert share_left_out(architecture, widths) == pytest.approx(0.25, abs=0.02)
    assert all(widths.channels % 128 == 0 for widths in candidates(architecture, 0.4, "mlp", "auto"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fraction": 0.0}, "is not between 0 and 1"),
        ({"fraction": 1.0}, "is not between 0 and 1"),
        ({"fraction": 0.95}, "No widths leave out 0.95"),
        ({"fraction": 0.01}, "No widths leave out 0.01"),
        ({"fraction": 0.5, "parts": "heads"}, "No widths leave out 0.5"),
        ({"multiple": 0}, "less than 1"),
        ({"damping": 0}, "outside"),
        ({"iterations": -1}, "is negative"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(tiny_model, options, says):
    with pytest.raises(InputError, match=says):
        make_pass("prune-width", options).plan(Checkpoint.open(tiny_model("llama", **SHAPE)).architecture, {})


def test_a_quantized_model_and_heads_of_gpt2_are_refused(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="is already int4"):
        make_pass("prune-width", {}).plan(architecture, {"lm_head": Scheme(4, 32)})
    with pytest.raises(InputError, match="fp8 key-value cache"):
        make_pass("prune-width", {}).cache_scales(architecture, True)
    with pytest.raises(InputError, match="has no setting for heads") as raised:
        make_pass("prune-width", {}).plan(Checkpoint.open(tiny_model("gpt2")).architecture, {})
    assert raised.value.hint == "prune-width:parts=mlp works."


def test_a_config_keeps_what_it_does_not_change(tiny_model):
    config = Checkpoint.open(tiny_model("llama")).config
    changed = narrow_config(config, Widths(64, 2, 1))
    assert {key for key in changed if changed[key] != config.get(key)} == {
        "intermediate_size", "num_attention_heads", "num_key_value_heads"
    }  # fmt: skip


def test_a_model_that_overflows(tiny_model, tmp_path):
    root = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(root)
    model.model.layers[0].mlp.down_proj.weight.data[:8].fill_(3e38)
    model.save_pretrained(root)
    with pytest.raises(RunError, match="hold NaN or Inf"):
        prune(root, tmp_path / "out", parts="mlp", multiple=32)


@pytest.mark.parametrize("target", ["onnx-int4", "trt-int4", "vllm-int4", "gguf-q4_0", "hf"])
def test_targets_take_what_is_left(llmc, tiny_model, tmp_path, target):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} of a text that is long enough.\n" for number in range(60)))
    root, out = tiny_model("llama", **{**SHAPE, "hidden_size": 128, "head_dim": 32}), tmp_path / "out"
    passes = ["--pass", "prune-width:parts=heads,fraction=0.25", "--pass", "rtn:group_size=64"]
    texts = [
        "--calibration",
        text,
        "--samples",
        4,
        "--length",
        48,
        "--eval",
        text,
        "--allow-same-text",
        "--eval-length",
        48,
    ]
    code, _, err = llmc(
        *("compress", root, "-t", target, *passes, *texts, "-o", out, "--prompt", 8, "--output-tokens", 4)
    )
    assert code == 0, err
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["artifact"]["verified"]["mismatches"] == []
    rows = {row["name"]: row for row in ledger["steps"]}
    step, artifact = rows["rtn:group_size=64"]["quality"], ledger["steps"][-1]["quality"]
    if artifact:
        assert artifact["perplexity"]["value"] == pytest.approx(step["perplexity"]["value"], rel=0.02)


@pytest.mark.parametrize("target", ["vllm-int4", "gguf-q4_0"])
def test_runtimes_that_derive_the_width_of_a_head_refuse_before_work(llmc, tiny_model, tmp_path, target):
    words = ["compress", tiny_model("qwen2", **SHAPE), "-t", target, "--measure", "none", "-o", tmp_path / "out"]
    words += ["--calibration", tmp_path / "text.txt"]
    (tmp_path / "text.txt").write_text("text")
    narrow, rounded = ["--pass", "prune-width:parts=heads,fraction=0.1,multiple=8"], ["--pass", "rtn:group_size=32"]
    code, _, err = llmc(*words, *narrow, *rounded)
    assert code == 2
    assert "heads for as wide as its hidden size" in " ".join(err.split())
    code, _, err = llmc(*words, *rounded, *narrow)
    assert code == 2
    assert "is already int4" in err
