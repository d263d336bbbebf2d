from dataclasses import dataclass
from typing import ClassVar

import pytest

from compressor.errors import InputError
from compressor.recipe import Recipe, preset_with_bits
from compressor.registry import make_target
from targets.huggingface import HuggingFace


@dataclass(frozen=True)
class Grouped(HuggingFace):
    """A target whose preset says more than the bits."""

    preset: ClassVar[tuple[str, ...]] = ("rotate", "gptq:bits=4,group_size=64,symmetric=false,sweeps=1")


@pytest.mark.parametrize(
    ("target", "bits", "expected"),
    [
        ("hf", 8, ["gptq:bits=8"]),
        ("hf", 4, ["gptq"]),
        ("onnx-int8", 8, ["rtn:bits=8"]),
        ("hf", 4.25, ["mixed:bits=4.25"]),
        ("hf", 5, ["mixed:bits=5.0"]),
        ("onnx-int8", 6.5, ["mixed:bits=6.5"]),
    ],
)
def test_bits_change_the_preset(target, bits, expected):
    recipe = Recipe(model="m", target=target, passes=preset_with_bits(make_target(target, {}), bits))
    assert [one.spelled() for one in recipe.build_passes()] == expected


@pytest.mark.parametrize("target", ["onnx-int4", "onnx-int4:accuracy_level=4", {"onnx-int4": {"accuracy_level": 4}}])
def test_options_of_the_target_are_replaced(target):
    recipe = Recipe(model="m", target=target).with_target_options({"accuracy_level": 0})
    assert recipe.build_target().options()["accuracy_level"] == 0
    with pytest.raises(InputError, match="'trt-int4' has no option 'accuracy_level'"):
        Recipe(model="m", target="trt-int4").with_target_options({"accuracy_level": 0}).build_target()


def test_the_rest_of_the_preset_is_kept():
    width = Recipe(model="m", target="hf", passes=preset_with_bits(Grouped(), 8)).build_passes()
    assert [one.spelled() for one in width] == ["rotate", "gptq:bits=8,group_size=64,symmetric=false,sweeps=1"]
    average = Recipe(model="m", target="hf", passes=preset_with_bits(Grouped(), 4.4)).build_passes()
    assert [one.name for one in average] == ["rotate", "mixed"]
    assert (
        average[1].options() | {"bits": 4.4, "group_size": 64, "symmetric": False, "sweeps": 1} == average[1].options()
    )


def test_a_preset_without_bits_is_refused():
    with pytest.raises(InputError, match="preset of onnx-fp32 has no pass with bits"):
        preset_with_bits(make_target("onnx-fp32", {}), 4)
