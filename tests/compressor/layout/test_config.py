"""The `quantization_config` of config.json: written, read back, and accepted by compressed-tensors."""

from __future__ import annotations

import pytest
from compressed_tensors.quantization import QuantizationConfig

from compressor import layout
from compressor.errors import InputError
from compressor.quantized import Activations, Scheme

LINEARS = [f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("gate", "up", "down")] + ["lm_head"]
INT4, INT8 = Scheme(4, 128), Scheme(8, None, symmetric=False)
W8A8 = Scheme(8, None, activations=Activations())
FP8_TENSOR = Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True)
FP8, FP8_ONLY = Scheme(8, None, type="float", activations=Activations(type="float")), Scheme(8, None, type="float")
NVFP4, NVFP4_INPUTS = (
    Scheme(4, 16, type="float", activations=activations) for activations in (None, Activations(4, "float", False))
)
STATIC = [
    Scheme(8, None, activations=Activations(dynamic=False)),
    Scheme(8, None, type="float", activations=Activations(type="float", dynamic=False)),
    FP8_TENSOR,
]


@pytest.mark.parametrize(
    "schemes",
    [
        {},
        dict.fromkeys(LINEARS, INT4),
        dict.fromkeys(LINEARS[:-1], INT4),
        dict.fromkeys(LINEARS[:-1], INT8),
        dict.fromkeys(LINEARS[:-1], W8A8),
        dict.fromkeys(LINEARS[:-1], FP8),
        dict.fromkeys(LINEARS[:-1], FP8_ONLY),
        dict.fromkeys(LINEARS[:-1], NVFP4),
        dict.fromkeys(LINEARS[:-1], NVFP4_INPUTS),
        {name: FP8 if "down" in name else NVFP4_INPUTS for name in LINEARS[:-1]},
        *(dict.fromkeys(LINEARS[:-1], scheme) for scheme in STATIC),
        {name: INT8 if "down" in name else INT4 for name in LINEARS[:-1]},
        {name: FP8 if "down" in name else INT4 for name in LINEARS[:-1]},
        {name: W8A8 if "down" in name else STATIC[0] for name in LINEARS[:-1]},
        dict.fromkeys(LINEARS[2:4], INT4),
    ],
    ids=["none", "all", "no head", "int8", "w8a8", "fp8", "fp8 weights", "nvfp4 weights", "nvfp4",
         "fp8 and nvfp4", "w8a8 static", "fp8 static", "fp8 tensor",
         "int8 and int4", "fp8 and int4", "dynamic and static", "two"],
)  # fmt: skip
@pytest.mark.parametrize("kv_cache", [False, True])
def test_config_says_which_layers_are_quantized_and_how(schemes, kv_cache):
    written = {"quantization_config": layout.quantization_config(schemes, LINEARS, kv_cache)}
    assert layout.read_schemes(written, LINEARS) == schemes
    assert layout.reads_kv_cache(written) == kv_cache


@pytest.mark.parametrize("scheme", [INT4, INT8, W8A8, FP8, FP8_ONLY, *STATIC], ids=str)
def test_config_is_accepted_by_compressed_tensors(scheme):
    written = layout.quantization_config(dict.fromkeys(LINEARS[:-1], scheme), LINEARS, kv_cache=True)
    parsed = QuantizationConfig.model_validate(written)
    group = parsed.config_groups["group_0"]
    weights, inputs = group.weights, group.input_activations
    assert (weights.num_bits, weights.group_size, weights.symmetric, weights.type) == (
        scheme.bits,
        scheme.group_size,
        scheme.symmetric,
        scheme.type,
    )
    assert (inputs is None) == (scheme.activations is None)
    if inputs is not None:
        strategy = "token" if scheme.activations.dynamic else "tensor"
        assert (inputs.num_bits, inputs.type, inputs.dynamic, inputs.strategy) == (
            8,
            scheme.type,
            scheme.activations.dynamic,
            strategy,
        )
    assert (parsed.kv_cache_scheme.num_bits, parsed.kv_cache_scheme.type) == (8, "float")
    assert parsed.ignore == ["lm_head"]


@pytest.mark.parametrize(("preset", "scheme"), [("NVFP4A16", NVFP4), ("NVFP4", NVFP4_INPUTS)])
def test_nvfp4_is_described_as_the_library_describes_it(preset, scheme):
    written = layout.quantization_config(dict.fromkeys(LINEARS[:-1], scheme), LINEARS)
    ours = QuantizationConfig.model_validate(written).config_groups["group_0"].model_dump()
    library = QuantizationConfig(config_groups={preset: ["Linear"]}).config_groups[preset].model_dump()
    for part in ("weights", "input_activations"):
        for said in (ours[part], library[part]):
            if said is not None:
                del said["observer"]  # how a quantizer finds the scales
        assert ours[part] == library[part]


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("weights", {"strategy": "group"}),
        ("weights", {"group_size": 32}),
        ("weights", {"symmetric": False}),
        ("input_activations", {"dynamic": True}),
        ("input_activations", {"dynamic": False}),
        ("input_activations", {"num_bits": 8, "strategy": "tensor", "dynamic": False}),
        (None, {"format": "mxfp4-pack-quantized"}),
        (None, {"format": "float-quantized"}),
    ],
)
def test_other_four_bit_floats_are_refused(part, changed):
    refused(NVFP4_INPUTS, part, changed)


def test_groups_name_their_format_where_they_differ():
    schemes = {"a": INT4, "b": FP8, "c": W8A8}
    written = layout.quantization_config(schemes, schemes)
    parsed = QuantizationConfig.model_validate(written)
    assert parsed.format == "mixed-precision"
    formats = [group.format for group in parsed.config_groups.values()]
    assert formats == ["pack-quantized", "float-quantized", "int-quantized"]
    alike = layout.quantization_config({"a": INT4, "b": INT8}, [])
    assert alike["format"] == "pack-quantized"
    assert not any("format" in group for group in alike["config_groups"].values())


def test_patterns_of_other_writers_are_understood():
    group = layout.quantization_config({"x": INT4}, [])["config_groups"]["group_0"]
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*down_proj"],
              "config_groups": {"group_0": group | {"targets": ["re:model.layers.1.*"]}}}  # fmt: skip
    assert list(layout.read_schemes({"quantization_config": config}, LINEARS)) == LINEARS[3:5]
    config["config_groups"]["group_0"]["targets"] = ["Linear"]
    assert list(layout.read_schemes({"quantization_config": config}, LINEARS)) == [*LINEARS[:2], *LINEARS[3:5]]


def test_float_model_has_no_schemes():
    assert layout.read_schemes({}, LINEARS) == {}


def test_a_name_goes_before_a_pattern_and_a_pattern_before_the_class():
    def group(scheme, *targets):
        return layout.quantization_config({"x": scheme}, [])["config_groups"]["group_0"] | {"targets": list(targets)}

    groups = {"a": group(INT4, "Linear"), "b": group(INT8, "re:.*down_proj"), "c": group(Scheme(4, 64), LINEARS[2])}
    config = layout.quantization_config({"x": INT4}, ["lm_head"])
    for order in ("abc", "cba", "bca"):
        config["config_groups"] = {key: groups[key] for key in order}
        found = layout.read_schemes({"quantization_config": config}, LINEARS)
        assert found == {name: INT8 if "down" in name else INT4 for name in LINEARS[:-1]} | {LINEARS[2]: Scheme(4, 64)}


def test_other_formats_are_refused():
    with pytest.raises(InputError, match="already quantized") as caught:
        layout.read_schemes({"quantization_config": {"quant_method": "gptq", "bits": 4}}, LINEARS)
    assert "float checkpoint" in caught.value.hint
    mxfp4 = layout.quantization_config({"x": INT4}, []) | {"format": "mxfp4-pack-quantized"}
    with pytest.raises(InputError, match="mxfp4"):
        layout.read_schemes({"quantization_config": mxfp4}, LINEARS)


def refused(scheme, part, changed):
    config = layout.quantization_config(dict.fromkeys(LINEARS, scheme), LINEARS)
    found = config["config_groups"]["group_0"]
    if part is None:
        found |= changed
    else:
        found[part] |= changed
    with pytest.raises(InputError, match="in a way that cannot be read"):
        layout.read_schemes({"quantization_config": config}, LINEARS)


@pytest.mark.parametrize(
    "changed",
    [{"type": "float"}, {"num_bits": 3}, {"strategy": "tensor"}, {"actorder": "group"}],
    ids=lambda changed: next(iter(changed)),
)
def test_weights_that_have_no_representation_are_refused(changed):
    refused(INT4, "weights", changed)


@pytest.mark.parametrize(
    "changed",
    [{"type": "float"}, {"num_bits": 4}, {"strategy": "tensor"}, {"symmetric": False}, {"dynamic": "local"}],
    ids=lambda changed: next(iter(changed)),
)
def test_activations_that_have_no_representation_are_refused(changed):
    refused(W8A8, "input_activations", changed)


def test_weights_of_rounded_activations_have_one_scale_a_channel():
    refused(W8A8, "weights", {"strategy": "group", "group_size": 32})
    refused(W8A8, "weights", {"symmetric": False})


@pytest.mark.parametrize("scheme", [INT4, INT8, W8A8, FP8])
def test_a_format_that_does_not_hold_the_scheme_is_refused(scheme):
    other = {"pack-quantized": "int-quantized", "int-quantized": "float-quantized", "float-quantized": "pack-quantized"}
    refused(scheme, None, {"format": other[layout.storage_format(scheme)]})


def test_output_activations_are_refused():
    refused(INT8, None, {"output_activations": {"num_bits": 8}})


@pytest.mark.parametrize("changed", [{"type": "int"}, {"strategy": "attn_head"}, {"dynamic": True}], ids=str)
def test_other_key_value_caches_are_refused(changed):
    config = layout.quantization_config({"x": INT8}, [], kv_cache=True)
    config["kv_cache_scheme"] = config["kv_cache_scheme"] | changed
    with pytest.raises(InputError, match="fp8 with static scales can"):
        layout.reads_kv_cache({"quantization_config": config})


@pytest.mark.parametrize(
    ("preset", "layout_name", "scheme"),
    [
        ("W8A8", "int-quantized", W8A8),
        ("FP8_DYNAMIC", "float-quantized", FP8),
        ("FP8", "float-quantized", FP8_TENSOR),
        ("NVFP4A16", "nvfp4-pack-quantized", NVFP4),
        ("NVFP4", "nvfp4-pack-quantized", NVFP4_INPUTS),
        ("W4A16", "pack-quantized", INT4),
        ("W8A16", "pack-quantized", Scheme(8, 128)),
    ],
)
def test_presets_of_the_library_are_read(preset, layout_name, scheme):
    config = QuantizationConfig(config_groups={preset: ["Linear"]}, format=layout_name, ignore=["lm_head"])
    found = layout.read_schemes({"quantization_config": config.model_dump(mode="json")}, LINEARS)
    assert found == dict.fromkeys(LINEARS[:-1], scheme)


def test_one_scale_a_tensor_is_for_fp8_only():
    refused(W8A8, "weights", {"strategy": "tensor"})
