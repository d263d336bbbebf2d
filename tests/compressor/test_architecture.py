"""Families as rows of traits: resolved from config.json, and compared with the models transformers builds."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from compressor.architecture import read_config, resolve
from compressor.errors import InputError
from compressor.families import FAMILIES

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
}
LLAMA_KEYS = ("head_dim", "num_key_value_heads", "intermediate_size")
GEMMAS = ["gemma2", "gemma3_text"]
LINEARS = dict.fromkeys(FAMILIES, 3) | {"phi3": 1, "gpt2": 1}  # that make query, key and value


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "overrides", [{}, {"head_dim": 24}, {"attention_bias": True, "mlp_bias": True}], ids=["plain", "wide", "biased"]
)
def test_tensor_shapes_are_those_of_transformers(family, tied, overrides):
    config = {"model_type": family, "tie_word_embeddings": tied} | SMALL | overrides
    if family == "gpt2":
        config = {key: value for key, value in config.items() if key not in LLAMA_KEYS} | {"n_inner": 48}
    full = CONFIG_MAPPING[family](**{key: value for key, value in config.items() if key != "model_type"})
    model = AutoModelForCausalLM.from_config(full)
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Conv1D"}
    expected = {
        name: tuple(tensor.shape)[:: -1 if name in conv1d else 1] for name, tensor in model.state_dict().items()
    }
    if tied:
        del expected["lm_head.weight"]
    found = resolve(config)
    assert found.tensor_shapes() == expected
    assert {name for name in expected if found.is_transposed(name)} == conv1d
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_have_the_defaults_of_transformers(family):
    full = CONFIG_MAPPING[family]()
    found = resolve({"model_type": family})
    assert (found.layers, found.hidden_size, found.vocab_size) == (
        full.num_hidden_layers,
        full.hidden_size,
        full.vocab_size,
    )
    assert found.kv_heads == getattr(full, "num_key_value_heads", full.num_attention_heads)
    assert found.norm_epsilon == getattr(full, FAMILIES[family].norm_epsilon)
    assert sum(found.qkv_rows) == sum(found.linears()[name][0] for name in list(found.linears())[: LINEARS[family]])


def test_head_dim_and_kv_heads_follow_from_heads_when_absent():
    config = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    found = resolve({"model_type": "llama", **config})
    assert (found.kv_heads, found.head_dim) == (4, 8)


def test_traits_of_the_families():
    found = {family: resolve({"model_type": family, **SMALL, "query_pre_attn_scalar": 8}) for family in FAMILIES}

    def having(trait):
        return [family for family, shape in found.items() if trait(shape)]

    assert having(lambda shape: shape.qkv_bias) == ["qwen2", "gpt2"]
    assert having(lambda shape: shape.output_bias or shape.mlp_bias) == ["gpt2"]
    assert having(lambda shape: shape.qk_norm) == ["qwen3", "gemma3_text"]
    assert having(lambda shape: shape.norm_shift) == having(lambda shape: shape.embedding_scale != 1) == GEMMAS
    assert having(lambda shape: shape.score_scale != shape.head_dim**-0.5) == GEMMAS
    assert having(lambda shape: shape.attention_softcap) == having(lambda shape: shape.logit_softcap) == ["gemma2"]
    assert having(lambda shape: len(set(shape.rotary_kinds)) > 1) == []
    assert having(lambda shape: not list(shape.fused_linears(0))) == ["phi3", "gpt2"]
    assert having(lambda shape: shape.norm == "layer" and not shape.gated and not shape.rotary_dim) == ["gpt2"]


def test_rotary_embeddings_by_kind_of_layer():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    shape = resolve({"model_type": "gemma3_text", **SMALL, "layer_types": kinds, "sliding_window": 8})
    assert list(shape.rotary_kinds) == kinds
    assert shape.windows == (8, None, 8)


def test_a_partial_rotary_embedding():
    assert resolve({"model_type": "phi3", **SMALL, "head_dim": 32, "partial_rotary_factor": 0.75}).rotary_dim == 24


@pytest.mark.parametrize(
    ("family", "setting"),
    [("gemma2", "use_bidirectional_attention"), ("gpt2", "scale_attn_by_inverse_layer_idx"),
     ("gpt2", "add_cross_attention")],
)  # fmt: skip
def test_settings_that_change_what_is_computed_are_refused(family, setting):
    with pytest.raises(InputError, match=f"{setting}=True"):
        resolve({"model_type": family, setting: True})


def test_a_model_of_images_and_text_is_refused():
    with pytest.raises(InputError, match="images") as caught:
        resolve({"model_type": "gemma3"})
    assert "gemma3_text" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"model_type": "llama"}, (None, None, None)),
        ({"model_type": "mistral", "sliding_window": 8}, (8, 8, 8)),
        ({"model_type": "mistral", "sliding_window": None}, (None, None, None)),
        ({"model_type": "qwen2", "sliding_window": 8}, (None, None, None)),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            (None, 8, 8),
        ),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, None, 8),
        ),
    ],
)
def test_windows(config, windows):
    assert resolve(config | SMALL).windows == windows


def test_linears_come_in_forward_order_with_the_head_last():
    linears = resolve({"model_type": "llama", **SMALL}).linears()
    assert [name.rpartition(".")[2] for name in list(linears)[:7]] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # fmt: skip
    assert len(linears) == 3 * 7 + 1
    assert list(linears.items())[-1] == ("lm_head", (50, 32))


def test_fused_linears():
    fused = list(resolve({"model_type": "llama", **SMALL}).fused_linears(2))
    assert fused[1] == ("model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj")


@pytest.mark.parametrize("family", ["mamba", "qwen3_moe"])
def test_unknown_family_names_the_known_ones_once_and_guesses_none(family):
    with pytest.raises(InputError, match=repr(family)) as caught:
        resolve({"model_type": family})
    assert caught.value.hint == "Families that it takes: " + ", ".join(FAMILIES) + "."
    assert not any(f"{known!r}" in str(caught.value) for known in FAMILIES)


def test_a_folder_without_a_family():
    with pytest.raises(InputError, match="None"):
        resolve({})


def test_other_task_of_a_known_family_is_refused():
    with pytest.raises(InputError, match="LlamaForSequenceClassification"):
        resolve({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]})


def test_config_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{\n "a": 1,\n}')
    with pytest.raises(InputError, match="line 3"):
        read_config(tmp_path)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"hidden_size": 0}, "hidden_size: 0, which is no size"),
        ({"hidden_size": "a"}, r"hidden_size: expected int, got str \(value: 'a'\)"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0,"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3, which does not divide 4 heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, which is no size from 1 to 10000"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings: 1000000000,"),
        ({"vocab_size": 2**31}, "vocab_size: 2147483648,"),
        ({"eos_token_id": [1, 2**31]}, "eos_token_id: 2147483648, which is no token id"),
        ({"pad_token_id": 50}, "pad_token_id: 50, and the embedding has 50 rows"),
        ({"rms_norm_eps": NAN}, "rms_norm_eps: nan, which is not a positive number"),
        ({"rms_norm_eps": INF}, "rms_norm_eps: inf"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps: -1e-06"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps: 0.0"),
        ({"rope_theta": 0.0}, "rope_theta: 0.0"),
        ({"rope_theta": NAN}, "rope_theta: nan"),
        ({"rope_theta": -10000.0}, "rope_theta: -10000.0"),
        ({"rope_theta": "x"}, "rope_theta: x"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor: 0.0, which is no share of a head"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: 1.5"),
        ({"rope_scaling": {"rope_type": "linear", "factor": NAN}}, "factor: nan"),
        ({"rope_scaling": {"rope_type": "linear"}}, "Missing required keys .*factor"),
        ({"rope_scaling": {"rope_type": "other"}}, "the rope_type 'other', which transformers does not have"),
        ({"hidden_act": "nope"}, "the activation 'nope', which transformers does not have"),
    ],
)
def test_nonsense_is_refused_with_its_key_and_value(overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        resolve({"model_type": "llama", **SMALL, **overrides})


def test_sizes_go_by_the_names_of_the_family():
    with pytest.raises(InputError, match="n_layer: 1000000000,"):
        resolve({"model_type": "gpt2", "n_layer": 10**9})
    with pytest.raises(InputError, match="layer_norm_epsilon: nan"):
        resolve({"model_type": "gpt2", "layer_norm_epsilon": NAN})
    with pytest.raises(InputError, match="query_pre_attn_scalar: 0"):
        resolve({"model_type": "gemma2", **SMALL, "query_pre_attn_scalar": 0})


def test_labels_of_a_classifier_are_not_counted():
    assert resolve({"model_type": "llama", **SMALL, "num_labels": 10**9}).layers == 3
