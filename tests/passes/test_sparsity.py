import json

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import dense
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.measure.zeros import share_of_zeros
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass, parse_spec
from passes.sparsity import keep_anywhere, keep_in_rows, keep_of_neighbours, kept_entries, parse_pattern

TOKENS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))
PASSES = ("magnitude", "wanda", "sparsegpt")


def apply(checkpoint, out, *specs):
    for number, spec in enumerate(specs):
        one = make_pass(*parse_spec(spec))
        one.plan(checkpoint.architecture, checkpoint.schemes)
        checkpoint = one.apply(checkpoint, PassContext(out / str(number), {}, TOKENS, 0, lambda *_: None, []))
    return checkpoint


def linears(checkpoint):
    """Values of the decoder's linears by name."""
    names = [f"{name}.weight" for name in checkpoint.architecture.linears() if name != "lm_head"]
    return {name: dense(weight) for name, weight in checkpoint.read(names).items()}


def test_masks_keep_the_highest():
    scores = torch.tensor([[1.0, 5, 2, 6, 3, 7, 4, 8], [9, 1, 9, 2, 9, 3, 9, 4]])
    assert keep_in_rows(scores, 0.5).int().tolist() == [[0, 1, 0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0, 1, 0]]
    assert keep_anywhere(scores, 0.75)[scores == 9].all()
    assert keep_of_neighbours(scores[:1], parse_pattern("1:4")).int().tolist() == [[0, 0, 0, 1, 0, 0, 0, 1]]


def test_rows_of_an_odd_width_lose_no_more_than_asked():
    assert int(keep_in_rows(torch.rand(4, 9), 0.5).sum()) == 4 * 5


def test_a_few_zeros_are_no_pruned_weight():
    weight = torch.ones(10, 10)
    weight[0, :4] = 0
    assert kept_entries(weight) is None
    weight[0] = 0
    assert torch.equal(kept_entries(weight), weight != 0)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_every_family_has_the_zeros_that_were_asked_for(tiny_model, tmp_path, family, name):
    pruned = apply(Checkpoint.open(tiny_model(family)), tmp_path, f"{name}:pattern=2:4")
    for layer, weight in linears(pruned).items():
        assert (weight.view(-1, 4) != 0).sum(-1).eq(2).all(), layer
    assert share_of_zeros(pruned) == 0.5


@pytest.mark.parametrize("name", PASSES)
def test_skipped_layers_stay_as_they_are(tiny_model, tmp_path, name):
    whole = Checkpoint.open(tiny_model("llama"))
    pruned = apply(whole, tmp_path, f"{name}:skip=*.down_proj+model.layers.0.*,sparsity=0.25")
    for layer, weight in linears(pruned).items():
        if layer.endswith("down_proj.weight") or ".0." in layer:
            assert torch.equal(weight, linears(whole)[layer])
        else:
            assert float((weight == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "following",
    [
        ("rtn:group_size=32",),
        ("rtn:group_size=32,symmetric=false,scale_search=true",),
        ("gptq:group_size=32",),
        ("gptq:group_size=channel,symmetric=false,bits=8",),
        ("awq:group_size=32",),
        ("awq:group_size=32,round=false", "gptq:group_size=32"),
        ("smoothquant:down_proj=true", "gptq:bits=8,group_size=channel,activations=dynamic"),
        ("tune:group_size=32,iterations=4",),
        ("mixed:group_size=32,windows=4",),
        ("fp8",),
        ("nvfp4",),
    ],
)
def test_zeros_stay_zero_in_passes_that_follow(tiny_model, tmp_path, following):
    """Whatever makes up for errors of rounding leaves zeros alone, and zero is on every grid."""
    sparse = apply(Checkpoint.open(tiny_model("llama")), tmp_path / "sparse", "sparsegpt:pattern=2:4")
    rounded = apply(sparse, tmp_path / "rounded", *following)
    before, after = linears(sparse), linears(rounded)
    assert not any(after[name][before[name] == 0].any() for name in before)
    assert share_of_zeros(rounded) >= 0.5


def test_a_pruned_weight_is_solved_for_what_is_left(tiny_model, tmp_path):
    """gptq on a sparse model is closer than rounding to nearest, as on a dense one."""
    sparse = apply(Checkpoint.open(tiny_model("llama")), tmp_path / "sparse", "magnitude")

    def error(spec):
        rounded = apply(sparse, tmp_path / spec.partition(":")[0], spec)
        name = "model.layers.0.self_attn.q_proj.weight"
        inputs = sparse.read(["model.embed_tokens.weight"])["model.embed_tokens.weight"][TOKENS[:, 1:]].flatten(0, 1)
        return float(((linears(rounded)[name] - linears(sparse)[name]) @ inputs.T).square().sum())

    assert error("gptq:group_size=32,propagation=false") < 0.9 * error("rtn:group_size=32")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, "sparsity=1 leaves nothing"),
        ({"sparsity": 1.5}, "sparsity=1.5 leaves nothing"),
        ({"sparsity": 0.0}, "sparsity=0 leaves everything"),
        ({"sparsity": -0.5}, "leaves everything"),
        ({"sparsity": 0.01}, "sparsity=0.01 of the 64 inputs of .* is none of them"),
        ({"pattern": "two of four"}, "is not of the form N:M"),
        ({"pattern": "0:4"}, "pattern=0:4 leaves nothing"),
        ({"pattern": "4:4"}, "pattern=4:4 leaves everything"),
        ({"pattern": "2:6"}, "groups have 2, 4, 8"),
        ({"pattern": "64:128"}, "does not divide the input width 64 of .*q_proj .and of 11 more layers."),
        ({"pattern": "1:4", "sparsity": 0.6}, "makes 0.75 of the entries zero, and not 0.6"),
        ({"skip": ("*_proj",)}, "No layer is left to prune"),
        ({"skip": ("*.conv",)}, "matches no layer"),
    ],
)
@pytest.mark.parametrize("name", PASSES)
def test_what_does_not_fit_is_refused_before_work(tiny_model, name, options, says):
    with pytest.raises(InputError, match=says):
        make_pass(name, options).plan(Checkpoint.open(tiny_model("llama")).architecture, {})


@pytest.mark.parametrize("name", PASSES)
def test_a_quantized_model_is_refused(tiny_model, name):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="is already int4"):
        make_pass(name, {}).plan(architecture, {"model.layers.0.mlp.up_proj": Scheme(4, 32)})
    with pytest.raises(InputError, match="fp8 key-value cache"):
        make_pass(name, {}).cache_scales(architecture, True)


def test_the_ledger_has_the_measured_share(llmc, tiny_model, tmp_path):
    words = ["compress", tiny_model("llama"), "-t", "hf", "--measure", "none", "-o", tmp_path / "out", "--pass"]
    code, _, err = llmc(*words, "magnitude:pattern=2:4", "--pass", "rtn:group_size=32")
    assert code == 0, err
    rows = json.loads((tmp_path / "out" / "ledger.json").read_text())["steps"]
    assert [row["zeros"] for row in rows[:2]] == [None, 0.5]
    assert rows[2]["zeros"] > 0.5
    assert "| zeros |" in (tmp_path / "out" / "report.md").read_text()


def test_a_pass_that_fills_zeros_is_refused_behind_one_that_makes_them(llmc, tiny_model, tmp_path):
    words = ["compress", tiny_model("llama"), "-t", "hf", "--measure", "none", "-o", tmp_path / "out"]
    code, _, err = llmc(*words, "--pass", "magnitude", "--pass", "rotate", "--pass", "rtn:group_size=32")
    assert code == 2
    assert "rotate fills the zeros that magnitude makes." in err
    assert "Put rotate first, or leave out one of both." in err
    assert not (tmp_path / "out").exists()
    code, _, err = llmc(*words, "--pass", "rotate", "--pass", "magnitude", "--pass", "rtn:group_size=32")
    assert code == 0, err


def test_a_pattern_in_a_recipe(llmc, tiny_model, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: [{wanda: {pattern: 2:4}}]\ntarget: hf\n")
    code, _, err = llmc("compress", tiny_model("llama"), "--recipe", recipe, "-o", tmp_path / "out", "--dry-run")
    assert code == 2
    assert "pattern" in err
