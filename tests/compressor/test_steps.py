"""Names of steps: one for equal passes, others for different ones."""

import shutil

import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.json_file import read_object
from compressor.plan import Plan
from compressor.recipe import make_recipe
from compressor.steps import step_names
from compressor.writer import STEP_FILE, check_content


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


def test_a_step_with_a_changed_byte_is_not_used_again(llmc, tiny_model, tmp_path):
    words = ("compress", tiny_model("llama"), "-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none")
    out = tmp_path / "out"
    assert llmc(*words, "-o", out)[0] == 0
    shutil.rmtree(out / "artifact")
    assert llmc(*words, "-o", out, "--resume")[0] == 0
    weights = out / "steps" / "01-rtn" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shutil.rmtree(out / "artifact")
    code, _, err = llmc(*words, "-o", out, "--resume")
    assert code == 2
    assert "01-rtn is damaged: its bytes are not those that were written" in err


def test_a_step_with_another_tokenizer_is_not_used_again(tiny_model, tmp_path):
    made = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "step", lambda block: block, {"key": "k"})
    known = read_object(made.root / STEP_FILE)
    assert check_content(made, known) is made
    (made.root / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        check_content(made, known)


def test_a_step_of_an_earlier_version_has_no_digest(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    assert check_content(checkpoint, {}) is checkpoint
    assert check_content(checkpoint, {"content": checkpoint.digest}) is checkpoint
    with pytest.raises(InputError, match="is damaged"):
        check_content(checkpoint, {"content": "another"})
