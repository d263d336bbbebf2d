"""Folders whose numbers have no other form here: what is read equals what their own libraries read, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import InputError
from compressor.prequantized import PackedFolder
from compressor.source import open_model

UP = "model.layers.1.mlp.up_proj"
FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 40]}
BLOCKS = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 40], "symmetric": True}
CT_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": BLOCKS, "input_activations": None}},
}


@pytest.fixture
def take(tmp_path):
    return lambda root, **options: open_model(str(root), tmp_path / "import", progress=lambda *_: None, **options)


@pytest.fixture
def stored_as(tiny_model):
    """A factory: a model folder whose linears `pack(weight) -> tensors by suffix` has packed, with these settings."""

    def make(pack, settings):
        root = tiny_model("llama", tied=False)
        tensors = load_file(root / "model.safetensors")
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            packed = pack(tensors.pop(name))
            tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in packed.items()}
        save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((root / "config.json").read_text())
        (root / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        return root, tensors

    return make


def fp8(scale, block=(48, 40)):
    """fp8 codes, and scales with all their bits, one a block of a size that divides neither side."""

    def pack(weight):
        counts = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)] if block else []
        return {"weight": (weight * 100).to(torch.float8_e4m3fn), scale: torch.rand(counts) / 77}

    return pack


def read_up(take, root):
    source = take(root, requantize=True)
    assert source.checkpoint.schemes == {}
    return source, source.checkpoint.read([f"{UP}.weight"])[f"{UP}.weight"]


def refused(take, root, kind):
    with pytest.raises(InputError, match=kind) as caught:
        take(root)
    assert "--requantize" in caught.value.hint


def one_by_one(tensors, scale, block):
    codes, scales = tensors[f"{UP}.weight"].float().numpy(), tensors[f"{UP}.{scale}"].numpy()
    found = np.empty_like(codes)
    for (row, column), code in np.ndenumerate(codes):
        found[row, column] = code * scales[row // block[0], column // block[1]]
    return torch.from_numpy(found)


def test_fp8_blocks(take, stored_as):
    root, tensors = stored_as(fp8("weight_scale_inv"), FP8_CONFIG)
    refused(take, root, "fp8 in blocks of 48 x 40")
    source, values = read_up(take, root)
    assert torch.equal(values, one_by_one(tensors, "weight_scale_inv", (48, 40)))
    assert source.imported.startswith("dequantized from fp8 in blocks of 48 x 40 to float32")


def test_fp8_blocks_as_transformers_reads_them(take, stored_as):
    from transformers import AutoModelForCausalLM

    root, _ = stored_as(fp8("weight_scale_inv", (32, 32)), FP8_CONFIG | {"weight_block_size": [32, 32]})
    _, values = read_up(take, root)
    theirs = AutoModelForCausalLM.from_pretrained(root).state_dict()[f"{UP}.weight"]
    assert torch.equal(values.to(theirs.dtype), theirs)


def test_fp8_with_a_scale_of_the_tensor_and_of_its_inputs(take, stored_as):
    def pack(weight):
        return fp8("weight_scale_inv", None)(weight) | {"activation_scale": torch.tensor(0.5)}

    root, tensors = stored_as(pack, FP8_CONFIG | {"weight_block_size": None, "activation_scheme": "static"})
    refused(take, root, "fp8 with one scale a tensor")
    _, values = read_up(take, root)
    assert torch.equal(values, tensors[f"{UP}.weight"].float() * tensors[f"{UP}.weight_scale_inv"])


def test_blocks_of_compressed_tensors(take, stored_as):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    root, tensors = stored_as(fp8("weight_scale", (32, 16)), CT_CONFIG | _blocks_of([32, 16]))
    refused(take, root, "fp8 in blocks of 32 x 16")
    _, values = read_up(take, root)
    arguments = QuantizationArgs(**BLOCKS | {"block_structure": [32, 16]})
    theirs = dequantize(tensors[f"{UP}.weight"], tensors[f"{UP}.weight_scale"], None, arguments, dtype=torch.float32)
    assert torch.equal(values, theirs)


def test_blocks_that_divide_neither_side(take, stored_as):
    root, tensors = stored_as(fp8("weight_scale"), CT_CONFIG)
    _, values = read_up(take, root)
    assert torch.equal(values, one_by_one(tensors, "weight_scale", (48, 40)))


def test_bitsandbytes_int8(take, stored_as):
    functional = pytest.importorskip("bitsandbytes.functional")

    def pack(weight):
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    root, tensors = stored_as(pack, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    refused(take, root, "bitsandbytes int8")
    _, values = read_up(take, root)
    assert torch.equal(values, functional.int8_vectorwise_dequant(tensors[f"{UP}.weight"], tensors[f"{UP}.SCB"]))


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_fp4(take, stored_as, double):
    functional = pytest.importorskip("bitsandbytes.functional")
    meant = {}

    def pack(weight):
        packed, state = functional.quantize_4bit(weight, quant_type="fp4", compress_statistics=double)
        meant[len(meant)] = functional.dequantize_4bit(packed, state)
        return {"weight": packed} | {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}

    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": double}
    root, tensors = stored_as(pack, {"quant_method": "bitsandbytes"} | settings)
    refused(take, root, "bitsandbytes fp4")
    _, values = read_up(take, root)
    assert any(torch.equal(values, one) for one in meant.values())
    assert PackedFolder.open(root).schemes.keys() == {
        name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")
    }


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (FP8_CONFIG | {"weight_block_size": "wide"}, "in blocks of 'wide'"),
        (FP8_CONFIG | {"weight_block_size": [0, 4]}, r"in blocks of \[0, 4\]"),
        (FP8_CONFIG | {"weight_block_size": [64, 64]}, r"weight_scale_inv has shape \[2, 2\]"),
    ],
)
def test_settings_that_do_not_fit(take, stored_as, settings, sentence):
    root, _ = stored_as(fp8("weight_scale_inv"), settings)
    with pytest.raises(InputError, match=sentence):
        take(root, requantize=True)


def test_a_damaged_state_of_fp4(take, stored_as):
    def pack(weight):
        size = weight.numel()
        return {
            "weight": torch.zeros(size // 2, 1, dtype=torch.uint8),
            "weight.absmax": torch.ones(3),
            "weight.quant_map": torch.arange(16.0),
            "weight.quant_state.bitsandbytes__fp4": torch.tensor(
                list(json.dumps({"shape": list(weight.shape), "blocksize": 64}).encode()), dtype=torch.uint8
            ),
        }

    root, _ = stored_as(pack, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(InputError, match="does not fit its tensors"):
        take(root, requantize=True)


def _blocks_of(size):
    group = CT_CONFIG["config_groups"]["group_0"]
    return {"config_groups": {"group_0": group | {"weights": BLOCKS | {"block_structure": size}}}}


# -- GPTQ with act-order, and auto-round -----------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_with_act_order(take, packed_model, symmetric, bits):
    root, linears = packed_model(bits=bits, symmetric=symmetric, settings={"desc_act": True})
    tensors = load_file(root / "model.safetensors")
    index = tensors[f"{UP}.g_idx"][torch.randperm(64)]
    save_file(tensors | {f"{UP}.g_idx": index}, root / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="act-order") as caught:
        take(root)
    assert "--requantize" in caught.value.hint
    _, values = read_up(take, root)
    packed = linears[UP]
    for (row, column), value in np.ndenumerate(values.numpy()):
        group = int(index[column])
        code = int(packed.codes[row, column]) - int(packed.zeros[row, group])
        assert value == np.float32(code) * np.float32(packed.scales[row, group])


def test_an_input_of_no_group(take, packed_model):
    index = torch.full((64,), 2, dtype=torch.int32)
    root, _ = packed_model(extra={f"{UP}.g_idx": index})
    with pytest.raises(InputError, match="names a group that is not among its 2"):
        take(root, requantize=True)


@pytest.mark.parametrize(
    ("packing", "method", "version"),
    [("auto_round:auto_gptq", "gptq", 1), ("auto_gptq", "gptq", 1), ("auto_round", "gptq", 2),
     ("auto_round:gptqmodel", "gptq", 2), ("auto_round:auto_awq", "awq", 2), ("auto_awq", "awq", 2)],
)  # fmt: skip
def test_the_format_of_auto_round(take, packed_model, packing, method, version):
    own = {"quant_method": "auto-round", "packing_format": packing, "sym": False, "data_type": "int"}
    root, linears = packed_model(method, version=version, settings=own | {"checkpoint_format": None, "version": None})
    weight = take(root).checkpoint.read([f"{UP}.weight"])[f"{UP}.weight"]
    middle = 2 ** (weight.scheme.bits - 1)
    assert torch.equal(weight.codes.long() + middle, torch.from_numpy(linears[UP].codes))
    assert torch.equal(weight.zero_points.long() + middle, torch.from_numpy(linears[UP].zeros))
    assert torch.equal(weight.scales, torch.from_numpy(linears[UP].scales).float())


def test_layers_with_settings_of_their_own(take, packed_model):
    own = {"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"}
    extra = {
        UP: {"bits": 8},
        r".*\.0\.self_attn\.o_proj": {"group_size": 64},
        "model.layers.0.mlp.up_proj": {"bits": 16},
    }
    layers = {"1.mlp.up_proj": (8, 32), "0.self_attn.o_proj": (4, 64), "0.mlp.up_proj": None}
    root, _ = packed_model(layer_settings=layers, settings=own | {"extra_config": extra})
    schemes = take(root).checkpoint.schemes
    assert "model.layers.0.mlp.up_proj" not in schemes
    assert (schemes[UP].bits, schemes["model.layers.0.self_attn.o_proj"].group_size) == (8, 64)
    assert schemes["model.layers.1.self_attn.o_proj"].group_size == 32


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"packing_format": "auto_round:llm_compressor"}, "packed as auto_round:llm_compressor"),
        ({"data_type": "mx_fp"}, "mx_fp with 16-bit inputs"),
        ({"act_bits": 8}, "with 8-bit inputs"),
        ({"rotation_config": {"kind": "hadamard"}}, "has a rotation_config"),
    ],
)
def test_what_auto_round_packs_otherwise(take, packed_model, settings, sentence):
    root, _ = packed_model(settings={"quant_method": "auto-round"} | settings)
    with pytest.raises(InputError, match=sentence):
        take(root)
