"""ModelOpt folders, written here element by element from the description of the format."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.inspection import describe
from compressor.quantized import Activations, Scheme
from compressor.source import open_model

DOWN, UP = "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"
OUT, V = "model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.v_proj"
INT4 = {"quant_algo": "W4A16_AWQ", "group_size": 32, "has_zero_point": False, "pre_quant_scale": True}
FP8 = Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True)
NVFP4 = Scheme(4, 16, type="float", activations=Activations(4, "float", dynamic=False))
ROWWISE = Scheme(8, None, type="float", activations=Activations(8, "float"))


def int4_parts(draw, rows, columns):
    codes = draw.integers(-8, 8, (rows, columns))
    packed = np.empty((rows // 2, columns), np.uint8)
    for row in range(rows // 2):
        packed[row] = (codes[2 * row] & 15) | ((codes[2 * row + 1] & 15) << 4)
    scales = draw.integers(128, 256, (rows, columns // 32)).astype(np.float32) * 2.0**-13
    return codes, scales, {"weight": torch.from_numpy(packed), "weight_scale": torch.from_numpy(scales)}


def int8_parts(draw, rows, columns):
    codes, scales = draw.integers(-128, 128, (rows, columns)), draw.random((rows, 1), np.float32)
    stored = torch.from_numpy(codes.astype(np.int8)), torch.from_numpy(scales[:, 0].copy())
    return codes, scales, dict(zip(("weight", "weight_scale"), stored, strict=True))


def fp8_parts(draw, rows, columns):
    codes = torch.from_numpy(draw.normal(size=(rows, columns)).astype(np.float32)).to(torch.float8_e4m3fn)
    stored = {"weight": codes, "weight_scale": torch.tensor(0.013), "input_scale": torch.tensor(0.5)}
    return codes.float().numpy(), np.full((rows, 1), 0.013, np.float32), stored


def rowwise_parts(draw, rows, columns):
    codes, _, stored = fp8_parts(draw, rows, columns)
    scales = draw.random((rows, 1), np.float32)
    return codes, scales, {"weight": stored["weight"], "weight_scale": torch.from_numpy(scales[:, 0].copy())}


def nvfp4_parts(draw, rows, columns):
    nibbles, numbers = draw.integers(0, 16, (rows, columns)), np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = np.where(nibbles >= 8, -1, 1) * numbers[nibbles % 8]
    blocks = torch.from_numpy(draw.random((rows, columns // 16), np.float32)).to(torch.float8_e4m3fn)
    packed = torch.from_numpy((nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).astype(np.uint8))
    stored = {"weight": packed, "weight_scale": blocks, "weight_scale_2": torch.tensor(2.0**-9)}
    return codes, blocks.float().numpy() * 2.0**-9, stored | {"input_scale": torch.tensor(0.5)}


PARTS = {
    "NVFP4": nvfp4_parts,
    "W4A16_AWQ": int4_parts,
    "W8A16": int8_parts,
    "FP8": fp8_parts,
    "FP8_PER_CHANNEL_PER_TOKEN": rowwise_parts,
}


@pytest.fixture
def modelopt(tiny_model, tmp_path):
    """`modelopt(algorithm, settings={}, extra={name: tensor}, own={ending: algorithm})`: a folder, and its numbers."""

    def make(algorithm="W4A16_AWQ", settings=None, extra=None, own=None, flat=None, **model):
        source, root = tiny_model("llama", tied=False, **model), tmp_path / "modelopt"
        shutil.copytree(source, root, dirs_exist_ok=True)
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
        draw, numbers = np.random.default_rng(0), {}
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            layer = name.removesuffix(".weight")
            kind = next((other for ending, other in (own or {}).items() if layer.endswith(ending)), algorithm)
            codes, scales, parts = PARTS[kind](draw, *tensors.pop(name).shape)
            numbers[layer] = codes, scales
            tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        save_file(tensors | (extra or {}), root / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((root / "config.json").read_text()) | {"dtype": "bfloat16"}
        if flat is not None:
            config["quantization_config"] = flat
        else:
            described = (INT4 if algorithm == "W4A16_AWQ" else {"quant_algo": algorithm}) | (settings or {})
            nested = {"kv_cache_quant_algo": None, "exclude_modules": ["lm_head"], **described}
            own_file = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": nested}
            (root / "hf_quant_config.json").write_text(json.dumps(own_file))
        (root / "config.json").write_text(json.dumps(config))
        return root, numbers

    return make


@pytest.fixture
def take(tmp_path):
    return lambda root, **options: open_model(str(root), tmp_path / "import", progress=lambda *_: None, **options)


def read(checkpoint, layer):
    return checkpoint.read([f"{layer}.weight"])[f"{layer}.weight"]


def assert_holds(checkpoint, numbers, but=()):
    assert set(checkpoint.schemes) == set(numbers)
    for layer, (codes, scales) in numbers.items():
        if layer not in but:
            found = read(checkpoint, layer)
            np.testing.assert_array_equal(found.codes.float().numpy(), codes)
            np.testing.assert_array_equal(found.scales.numpy(), scales)


@pytest.mark.parametrize(
    ("algorithm", "scheme"),
    [
        ("NVFP4", NVFP4),
        ("W4A16_AWQ", Scheme(4, 32)),
        ("W8A16", Scheme(8, None)),
        ("FP8", FP8),
        ("FP8_PER_CHANNEL_PER_TOKEN", ROWWISE),
    ],
)
def test_every_algorithm(modelopt, take, algorithm, scheme):
    root, numbers = modelopt(algorithm)
    source = take(root)
    assert set(source.checkpoint.schemes.values()) == {scheme}
    assert_holds(source.checkpoint, numbers)
    inputs = read(source.checkpoint, DOWN).input_scale
    assert (None if inputs is None else float(inputs)) == (0.5 if algorithm in ("FP8", "NVFP4") else None)
    assert source.imported.startswith("repacked from ModelOpt to compressed-tensors")
    assert source.checkpoint.dtype == torch.bfloat16


def test_mixed_precision_has_settings_by_layer(modelopt, take):
    own = {"down_proj": "W8A16", "o_proj": "FP8"}
    layers = {
        f"model.layers.{index}.{name}": INT4 for index in range(2) for name in
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    }  # fmt: skip
    layers |= {f"model.layers.{index}.mlp.down_proj": {"quant_algo": "W8A16"} for index in range(2)}
    layers |= {f"model.layers.{index}.self_attn.o_proj": {"quant_algo": "FP8"} for index in range(2)}
    settings = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    root, numbers = modelopt(settings=settings, own=own)
    checkpoint = take(root).checkpoint
    assert (checkpoint.schemes[DOWN], checkpoint.schemes[OUT], checkpoint.schemes[UP]) == (
        Scheme(8, None), FP8, Scheme(4, 32),
    )  # fmt: skip
    assert_holds(checkpoint, numbers)


def test_the_flat_copy_does_where_it_is_alone(modelopt, take):
    flat = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 32, "ignore": ["lm_head"]}
    root, numbers = modelopt(flat=flat)
    assert_holds(take(root).checkpoint, numbers)


def test_scales_of_the_cache(modelopt, take):
    names = [f"model.layers.{index}.self_attn.{x}_proj.{x}_scale" for index in range(2) for x in "kv"]
    scales = {name: torch.tensor(2.0**-number) for number, name in enumerate(names)}
    root, numbers = modelopt("FP8", settings={"kv_cache_quant_algo": "FP8"}, extra=scales)
    checkpoint = take(root).checkpoint
    assert checkpoint.kv_cache
    found = checkpoint.read([f"model.layers.1.self_attn.{x}_scale" for x in "kv"])
    assert [float(scale) for scale in found.values()] == [0.25, 0.125]
    assert_holds(checkpoint, numbers)
    flat = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8}}
    (root / "hf_quant_config.json").unlink()
    (root / "config.json").write_text(
        json.dumps(json.loads((root / "config.json").read_text()) | {"quantization_config": flat})
    )
    assert describe(root)["key-value cache"] == "fp8"


# ---- scales of a layer's inputs


def ones(layer, width, factors=()):
    """An activation scale, of ones but for the first inputs."""
    scale = torch.ones(width)
    scale[: len(factors)] = torch.tensor(factors)
    return {f"{layer}.pre_quant_scale": scale.bfloat16()}


def test_ones_change_nothing(modelopt, take):
    root, numbers = modelopt(extra=ones(DOWN, 128) | ones(OUT, 64))
    assert_holds(take(root).checkpoint, numbers)


def test_inspect_tells_which_layers_have_them(modelopt, take):
    """In the folder by the name that it has there, in the step by what it means."""
    inexact = {f"{DOWN}.pre_quant_scale": torch.full((128,), 1 / 3)}
    root, _ = modelopt(extra=inexact | ones(OUT, 64))
    assert describe(root)["pre_quant_scale"] == {"down_proj": 1, "o_proj": 1}
    schemes = describe(take(root).checkpoint.root)["quantized linears"]
    assert schemes == {"int4 g32 symmetric": 13, "int4 g32 symmetric, inputs multiplied": 1}


def test_exact_factors_go_into_the_layer_before(modelopt, take):
    """Query heads 0 and 1 read the values of head 0, and their inputs 0 to 15 are its rows."""
    heads = [2.0, 0.5, 1.5] + 13 * [1.0]
    root, numbers = modelopt(extra=ones(DOWN, 128, (4.0, 0.25, 1.25)) | ones(OUT, 64, heads + heads))
    source = take(root)
    assert source.imported.endswith("so are scales but for those into which pre_quant_scale is folded, exactly")
    checkpoint = source.checkpoint
    assert_holds(checkpoint, numbers, but=(UP, V))
    for layer, factors in ((UP, (4.0, 0.25, 1.25)), (V, (2.0, 0.5, 1.5))):
        codes, scales = numbers[layer]
        wanted = scales.copy()
        wanted[:3] *= np.array(factors, np.float32)[:, None]
        np.testing.assert_array_equal(read(checkpoint, layer).codes.numpy(), codes)
        np.testing.assert_array_equal(read(checkpoint, layer).scales.numpy(), wanted)


def test_a_folded_model_computes_what_the_folder_means(modelopt, take, tmp_path):
    heads = [2.0, 0.5, 4.0] + 13 * [1.0]  # times a bias in bfloat16, too
    root, _ = modelopt(extra=ones(DOWN, 128, (4.0, 0.25, 1.25)) | ones(OUT, 64, heads + heads), attention_bias=True)
    folded = take(root).checkpoint
    meant = open_model(str(root), tmp_path / "float", requantize=True, progress=lambda *_: None).checkpoint
    assert meant.schemes == {}
    tokens = torch.arange(20)[None]
    found, wanted = (Decoder(one).final_states(tokens) for one in (folded, meant))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


CANNOT_BE_FOLDED = {
    "query heads that read the same values differ": ones(OUT, 64, [2.0] * 8),
    "no layer before": ones(UP, 64, [2.0]),
    "scales of up_proj would be rounded": {f"{DOWN}.pre_quant_scale": torch.full((128,), 1 / 3)},
}


@pytest.mark.parametrize("scales", CANNOT_BE_FOLDED.values(), ids=CANNOT_BE_FOLDED)
def test_factors_that_cannot_be_folded_are_held(modelopt, take, tmp_path, scales):
    foldable = ones(DOWN.replace("1", "0"), 128, (4.0, 0.25))
    root, numbers = modelopt(extra=scales | foldable)
    source = take(root)
    assert source.imported.endswith("pre_quant_scale, which cannot be folded exactly, is held beside them")
    assert_holds(source.checkpoint, numbers)
    for name, stored in (scales | foldable).items():  # all of them are held where one has to be
        layer = name.removesuffix(".pre_quant_scale")
        assert source.checkpoint.schemes[layer] == Scheme(4, 32, input_factors=True)
        assert torch.equal(read(source.checkpoint, layer).input_factors, stored.float())
        assert torch.equal(source.checkpoint.input_factors(layer), stored.float())
    assert sum(scheme.input_factors for scheme in source.checkpoint.schemes.values()) == 2
    assert take(root).imported == source.imported  # found again


@pytest.mark.parametrize("scales", CANNOT_BE_FOLDED.values(), ids=CANNOT_BE_FOLDED)
def test_requantize_takes_factors_into_the_values(modelopt, take, scales):
    root, numbers = modelopt(extra=scales)
    source = take(root, requantize=True)
    assert source.imported.startswith("dequantized from ModelOpt to float32, as --requantize asks")
    ((name, factors),) = scales.items()
    layer = name.removesuffix(".pre_quant_scale")
    codes, layer_scales = numbers[layer]
    wanted = codes * np.repeat(layer_scales, 32, axis=1) * factors.float().numpy()
    np.testing.assert_allclose(read(source.checkpoint, layer).numpy(), wanted, rtol=1e-6)


def test_a_tensor_scale_whose_reciprocal_loses_a_bit(modelopt, take):
    scale = torch.tensor(1 / 3) * torch.arange(1, 100)
    lossy = scale[1 / (1 / scale) != scale][0]
    root, _ = modelopt("NVFP4", extra={f"{DOWN}.weight_scale_2": lossy})
    with pytest.raises(InputError, match="is not the same after two reciprocals"):
        take(root)
    assert take(root, requantize=True).checkpoint.schemes == {}


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_algo": "MXFP8"}, "stored as MXFP8, which cannot be read; W4A16_AWQ, W8A16"),
        ({"quant_algo": "W4A8_AWQ"}, "stored as W4A8_AWQ"),
        ({"quant_algo": None}, "quantization settings of .* cannot be read"),
        ({"group_size": None}, "of no known group size"),
        ({"has_zero_point": True}, "with zero points"),
        ({"group_size": 64}, r"weight_scale has shape \[64, 2\]; .*config.json says \[64, 1\]"),
        ({"kv_cache_quant_algo": "NVFP4"}, "cache in NVFP4, of which FP8"),
        ({"kv_cache_quant_algo": "FP8"}, r"no tensor model.layers.0.self_attn.k_proj.k_scale"),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {}}, "do not name it"),
        ({"quant_algo": "W8A16"}, r"weight has shape \[32, 64\]"),
    ],
)
def test_settings_that_cannot_be_read(modelopt, take, settings, message):
    with pytest.raises(InputError, match=message):
        take(modelopt(settings=settings)[0])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{DOWN}.weight_scale": torch.ones(64, 4, dtype=torch.int32)}, "is stored as int32, not float16 or"),
        ({f"{DOWN}.zero_point": torch.ones(1)}, "zero_point has no place"),
    ],
)
def test_tensors_that_do_not_fit(modelopt, take, extra, message):
    with pytest.raises(InputError, match=message):
        take(modelopt(extra=extra)[0])


def test_inspect_and_the_checkpoint_say_what_it_is(modelopt):
    root, _ = modelopt()
    facts = describe(root)
    assert (facts["kind"], facts["quantized linears"]) == ("ModelOpt model folder", {"int4 g32 symmetric": 14})
    assert "pre_quant_scale" not in facts
    with pytest.raises(InputError, match="shape"):
        Checkpoint.open(root)
