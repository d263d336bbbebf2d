import json
from dataclasses import fields

import pytest
from peft import LoHaConfig, LoKrConfig, LoraConfig

from compressor.adapter.config import CONFIG_FILE, DECISIVE, OTHER_LORAS, TRAINING, read_adapter_config
from compressor.errors import InputError


@pytest.fixture
def read(tmp_path):
    """A factory: the configuration of a LoRA as peft saves it, with other values."""
    LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(tmp_path)

    def make(**changed):
        path = tmp_path / CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return read_adapter_config(tmp_path, "./lora")

    return make


def test_every_setting_of_peft_is_known():
    settings = {field.name for kind in (LoraConfig, LoHaConfig, LoKrConfig) for field in fields(kind)}
    assert settings - {*DECISIVE, *TRAINING, *OTHER_LORAS} == {"runtime_config"}, "which peft does not save"


@pytest.mark.parametrize("off", [None, False, "", [], {}])
def test_a_setting_of_a_newer_peft_that_is_off_says_nothing(read, off):
    assert read(rotates_twice=off)["r"] == 4


@pytest.mark.parametrize("on", [True, 0, 3, "yes", [1], {"a": None}])
def test_a_setting_of_a_newer_peft_that_is_on_is_refused_by_name(read, on):
    with pytest.raises(InputError, match=r"\./lora has the setting rotates_twice=.*, which is not known here"):
        read(rotates_twice=on)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha=NaN, which is not a finite number"),
        ({"lora_alpha": float("inf")}, "lora_alpha=Infinity, which is not a finite number"),
        ({"lora_alpha": None}, "lora_alpha=null, which is not a finite number"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern=.*finite numbers"),
        ({"r": 0}, "r=0, which is not a rank of 1 or more"),
        ({"r": True}, "r=true, which is not a rank"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern=.* which is not names of modules with ranks"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern="),
        ({"trainable_token_indices": {"embed_tokens": [1, -1]}}, "trainable_token_indices="),
        ({"target_modules": [1]}, "target_modules="),
        ({"use_dora": "yes"}, 'use_dora="yes", which is not true or false'),
        ({"base_model_name_or_path": 1}, "base_model_name_or_path=1"),
        ({"init_lora_weights": "newest"}, "init_lora_weights='newest', which is not known here"),
    ],
)
def test_values_that_decide_numbers_have_to_make_sense(read, changed, says):
    with pytest.raises(InputError, match=says):
        read(**changed)
