"""Names of steps: one for equal passes, others for different ones."""

import pytest

from compressor.plan import Plan
from compressor.recipe import make_recipe
from compressor.steps import step_names


def plan(target, *passes):
    recipe = make_recipe({"model": "m", "target": target, "passes": list(passes)})
    return Plan(recipe, recipe.build_passes(), recipe.build_target(), {})


@pytest.mark.parametrize(
    ("plans", "names"),
    [
        ([plan("hf", "rotate", "rtn")], [["01-rotate", "02-rtn"]]),
        ([plan("hf", "rtn"), plan("onnx-int4", "rtn:bits=4")], [["01-rtn"], ["01-rtn"]]),
        ([plan("hf", "rtn"), plan("onnx-int8", "rtn:bits=8")], [["01-rtn"], ["01-rtn-onnx-int8"]]),
        (
            [
                plan("hf", "rotate", "rtn"),
                plan("onnx-int8", "rotate", "rtn:bits=8"),
                plan("trt-int4", "rotate", "gptq"),
            ],
            [["01-rotate", "02-rtn"], ["01-rotate", "02-rtn-onnx-int8"], ["01-rotate", "02-gptq"]],
        ),
        # Equal passes after different ones are steps of their own.
        (
            [plan("hf", "rotate", "rtn"), plan("onnx-int4", "rotate:values=false", "rtn")],
            [["01-rotate", "02-rtn"], ["01-rotate-onnx-int4", "02-rtn-onnx-int4"]],
        ),
        ([plan("hf"), plan("onnx-fp32")], [[], []]),
    ],
)
def test_steps_are_shared_as_long_as_the_passes_are_equal(plans, names):
    assert step_names(plans) == names
