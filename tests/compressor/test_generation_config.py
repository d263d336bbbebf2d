"""Settings in generation_config.json that transformers refuses to save: which they are, and the copies without them."""

import json

import pytest

from compressor.errors import InputError
from compressor.generation_config import refused_note, usable_settings
from compressor.writer import copy_companions

SAMPLED = {"temperature": 0.6, "top_p": 0.9}


def write(root, **settings):
    (root / "generation_config.json").write_text(json.dumps(settings))
    return root


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"eos_token_id": [1, 2], "do_sample": False, **SAMPLED}, ["temperature", "top_p"]),
        ({"eos_token_id": 1, **SAMPLED}, ["temperature", "top_p"]),
        ({"eos_token_id": 1, "pad_token_id": -1}, ["pad_token_id"]),
        ({"length_penalty": 2.0, "num_beams": 1, "repetition_penalty": 1.1}, ["length_penalty"]),
        ({"do_sample": True, **SAMPLED}, []),
        ({"eos_token_id": 1, "pad_token_id": 0}, []),
        ({}, []),
    ],
)
def test_what_transformers_refuses_is_left_out_and_the_rest_is_kept(tmp_path, settings, refused):
    from transformers import GenerationConfig

    kept, found = usable_settings(write(tmp_path, **settings))
    assert found == refused
    assert kept == {key: value for key, value in settings.items() if key not in refused}
    assert len(refused_note(tmp_path)) == bool(refused)
    GenerationConfig(**kept).validate(strict=True)


def test_a_copy_is_mended_only_where_it_has_to_be(tmp_path):
    (tmp_path / "in").mkdir()
    for settings in ({"do_sample": True, **SAMPLED}, {"eos_token_id": 1, **SAMPLED}):
        write(tmp_path / "in", **settings)
        copy_companions(tmp_path / "in", tmp_path)
        copied = (tmp_path / "generation_config.json").read_bytes()
        if "do_sample" in settings:
            assert copied == (tmp_path / "in" / "generation_config.json").read_bytes()
    assert json.loads(copied) == {"eos_token_id": 1}


def test_what_transformers_opens_no_model_with_is_refused(tmp_path):
    with pytest.raises(InputError, match="`max_new_tokens` must be greater than 0, but is 0") as caught:
        usable_settings(write(tmp_path, max_new_tokens=0))
    assert "generation_config.json: transformers opens no model with it" in str(caught.value)
