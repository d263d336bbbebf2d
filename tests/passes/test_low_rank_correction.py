import json

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, dense
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.layout import check_together
from compressor.pass_ import PassContext
from compressor.plan import check_unrounded
from compressor.registry import make_pass, parse_spec

TOKENS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))
NAME = "low-rank-correction"


def apply(checkpoint, out, *specs, notes=None):
    """As a run does: `unrounded` is what the first pass that rounds was given."""
    unrounded = checkpoint
    for number, spec in enumerate(specs):
        one = make_pass(*parse_spec(spec))
        one.plan(checkpoint.architecture, checkpoint.schemes)
        notes = [] if notes is None else notes
        context = PassContext(out / str(number), {}, TOKENS, 0, lambda *_: None, notes, unrounded=unrounded)
        checkpoint = one.apply(checkpoint, context)
        unrounded = unrounded if checkpoint.schemes else checkpoint
    return checkpoint


def linears(checkpoint):
    names = [f"{name}.weight" for name in checkpoint.architecture.linears() if name != "lm_head"]
    return checkpoint.read(names)


def states(checkpoint):
    return Decoder(checkpoint).final_states(TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_integers_stay_as_they_are_in_every_family(tiny_model, tmp_path, family):
    rounded = apply(Checkpoint.open(tiny_model(family)), tmp_path / "rounded", "rtn:group_size=32")
    notes = []
    corrected = apply(
        Checkpoint.open(tiny_model(family)), tmp_path / "corrected", "rtn:group_size=32", f"{NAME}:rank=4", notes=notes
    )
    for name, weight in linears(corrected).items():
        assert weight.core.same_bits(linears(rounded)[name])
        assert weight.branch.rank == weight.scheme.rank == 4
    assert any("energy of a linear's output error is left" in note for note in notes)


@pytest.mark.parametrize("quantizer", ["rtn:group_size=32", "gptq:group_size=32"])
def test_it_comes_closer_with_the_rank(tiny_model, tmp_path, quantizer):
    whole = Checkpoint.open(tiny_model("llama"))
    errors = []
    for rank in (0, 2, 8):
        passes = [quantizer, f"{NAME}:rank={rank}"] if rank else [quantizer]
        made = apply(whole, tmp_path / f"{rank}", *passes)
        errors.append(float((states(made) - states(whole)).square().mean()))
    assert errors[2] < errors[1] < errors[0]


def test_it_fits_what_the_linears_read(tiny_model, tmp_path):
    """The error of the first linear's outputs is what the dropped singular values of (W - Q) S say."""
    whole = Checkpoint.open(tiny_model("llama"))
    made = apply(
        whole, tmp_path, "rtn:group_size=32", f"{NAME}:rank=5,propagation=false,precision=float32,damping=1e-6"
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    weight, before = linears(made)[name], dense(linears(whole)[name]).double()
    decoder = Decoder(whole)
    norm = decoder.layer(whole.block("layers.0")).input_layernorm
    inputs = norm(decoder.embed(TOKENS)).detach().flatten(0, 1).double()
    lost = ((before - dense(weight.core).double()) @ inputs.T) / len(inputs) ** 0.5
    left = ((before - dense(weight).double()) @ inputs.T) / len(inputs) ** 0.5
    least = float(torch.linalg.svdvals(lost)[5:].square().sum())
    assert float(left.square().sum()) == pytest.approx(least, rel=1e-3)


def test_a_corrected_folder_is_read_as_it_was_written(tiny_model, tmp_path):
    made = apply(Checkpoint.open(tiny_model("llama")), tmp_path / "made", "rtn:group_size=32", f"{NAME}:rank=4")
    config = json.loads((made.root / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "llmc"
    again = made.rewrite(tmp_path / "again", lambda block: block, {})
    assert again.digest == made.digest
    assert str(next(iter(made.schemes.values()))) == "int4 g32 symmetric, low-rank r4 beside"


def test_a_branch_computes_what_its_dense_value_does(tiny_model, tmp_path):
    """The running layer multiplies by the factors one after the other, without making their product."""
    made = apply(Checkpoint.open(tiny_model("llama")), tmp_path / "made", "rtn:group_size=32", f"{NAME}:rank=4")
    plain = made.rewrite(
        tmp_path / "plain",
        lambda block: block.with_weights({name: dense(weight) for name, weight in block.weights.items()}),
        {},
    )
    torch.testing.assert_close(states(made), states(plain), rtol=1e-4, atol=1e-4)


def test_the_whole_way(tiny_model, tmp_path, llmc):
    text = tmp_path / "text.txt"
    text.write_text("Some text that is read to see what linears read. " * 40)
    asked = ["compress", tiny_model("llama"), "--pass", "rtn:group_size=32", "--pass", f"{NAME}:rank=4"]
    asked += ["--calibration", text, "--samples", 4, "--length", 32, "--measure", "none"]
    code, _, err = llmc(*asked, "--target", "hf", "-o", tmp_path / "refused")
    assert code == 2
    assert "low-rank factors, which this target has no place for; onnx-int4 and onnx-int8 have one" in " ".join(
        err.split()
    )
    assert not (tmp_path / "refused").exists()
    code, out, err = llmc(*asked, "--target", "onnx-int4", "-o", tmp_path / "run")
    assert code == 0, err
    assert "bit-identical" in out
    code, out, _ = llmc("inspect", tmp_path / "run" / "steps" / f"02-{NAME}")
    assert code == 0
    assert "int4 g32 symmetric, low-rank r4 beside" in out


def test_factors_that_are_no_floats_are_refused(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    made = apply(Checkpoint.open(tiny_model("llama")), tmp_path / "made", "rtn:group_size=32", f"{NAME}:rank=4")
    tensors = load_file(made.root / "llmc.safetensors")
    tensors["model.layers.0.mlp.up_proj.low_rank_up"] = tensors["model.layers.0.mlp.up_proj.low_rank_up"].int()
    save_file(tensors, made.root / "llmc.safetensors")
    with pytest.raises(InputError, match="low_rank_up has the unsupported dtype"):
        Checkpoint.open(made.root)


def plan_of(root, *specs):
    checkpoint = Checkpoint.open(root)
    passes = [make_pass(*parse_spec(spec)) for spec in specs]
    check_unrounded(checkpoint, passes)
    schemes = checkpoint.schemes
    for one in passes:
        schemes = one.plan(checkpoint.architecture, schemes)
    check_together(schemes)
    return schemes


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([NAME], "no linear that it may change is rounded"),
        (["rtn:group_size=32", f"{NAME}:rank=0"], "rank=0 adds nothing"),
        (["rtn:group_size=32", f"{NAME}:rank=16"], "rank=16 makes .*k_proj, 32 x 64, larger than it was in 16 bits"),
        (["rtn:group_size=32", f"{NAME}:damping=0"], "outside"),
        (["rtn:group_size=32", f"{NAME}:rank=4", f"{NAME}:rank=4"], "has factors already"),
        (["rtn:bits=8,group_size=channel,activations=dynamic", NAME], "factors read inputs as they are"),
        (["awq:group_size=32", NAME], "awq changes weights beside rounding them"),
        (["nf4", f"{NAME}:rank=4"], "nf4 .*, low-rank r4 beside, which no folder holds"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(tiny_model, specs, says):
    with pytest.raises(InputError, match=says):
        plan_of(tiny_model("llama"), *specs)


@pytest.mark.parametrize("first", ["rotate", "smoothquant", "awq:group_size=32,round=false", "wanda"])
def test_passes_before_the_rounding_are_taken(tiny_model, first):
    schemes = plan_of(tiny_model("llama"), first, "gptq:group_size=32", f"{NAME}:rank=4")
    assert {scheme.rank for scheme in schemes.values()} == {4}


def test_a_model_that_came_rounded_is_refused(tiny_model, tmp_path):
    rounded = apply(Checkpoint.open(tiny_model("llama")), tmp_path, "rtn:group_size=32")
    with pytest.raises(InputError, match="the model came rounded"):
        plan_of(rounded.root, f"{NAME}:rank=4")
