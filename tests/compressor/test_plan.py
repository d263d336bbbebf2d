"""What a recipe becomes for a model, before any work."""

from __future__ import annotations

import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.plan import Plan
from compressor.recipe import make_recipe

# -- defaults that do not fit -------------------------------------------------------------------------------------


def widths_of(tiny_model, width, mlp):
    shape = {"hidden_size": width, "head_dim": width // 4, "intermediate_size": mlp}
    return Checkpoint.open(tiny_model("llama", num_hidden_layers=1, **shape))


def planned(checkpoint, **recipe):
    return Plan.of(make_recipe({"model": str(checkpoint.root), "target": "onnx-int4", **recipe}), checkpoint, False)


@pytest.mark.parametrize(("width", "mlp", "size"), [(192, 384, 64), (128, 96, 32), (128, 256, 128)])
@pytest.mark.parametrize("passes", [None, ["gptq:bits=4"]], ids=["the preset", "a pass"])
def test_a_default_group_size_becomes_the_largest_that_divides_all_widths(tiny_model, width, mlp, size, passes):
    plan = planned(widths_of(tiny_model, width, mlp), passes=passes)
    assert {scheme.group_size for scheme in plan.schemes.values()} == {size}
    assert plan.passes[0].group_size == size
    said = f"gptq runs with group_size={size}: its default of 128 does not fit the model's widths"
    assert plan.notes == (() if size == 128 else (said,))
    assert f"group_size: {size}" in str(plan.recipe.written_out()["passes"]).replace("'", "")


def test_a_group_size_that_was_asked_for_is_refused(tiny_model):
    with pytest.raises(InputError, match="group_size=128 does not divide the input width 192"):
        planned(widths_of(tiny_model, 192, 384), passes=["gptq:group_size=128"])


def test_a_width_that_no_group_size_divides_is_refused(tiny_model):
    with pytest.raises(InputError, match="group_size=128 does not divide the input width 80") as caught:
        planned(widths_of(tiny_model, 80, 160))
    assert "group_size=channel works" in caught.value.hint


def test_layers_that_are_left_out_do_not_count(tiny_model):
    plan = planned(widths_of(tiny_model, 128, 96), passes=[{"gptq": {"skip": ["*.down_proj"]}}], target="hf")
    assert plan.notes == ()
    assert {scheme.group_size for scheme in plan.schemes.values()} == {128}
