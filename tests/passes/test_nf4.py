"""NF4: the step holds what bitsandbytes made, transformers opens it, and what we read from it is what they compute."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")

from bitsandbytes import functional

from compressor import layout, nf4
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError, MissingExtra
from compressor.pass_ import PassContext
from compressor.plan import check_plan
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import TARGETS, make_pass, make_target, names
from compressor.target import Artifact
from compressor.verify import verify
from passes.nf4 import NF4, quantize

PLAIN = Scheme(4, 64, type="nf4")
DOUBLE = Scheme(4, 64, type="nf4", double_quant=True)
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture
def apply(tmp_path):
    def run(one, root):
        checkpoint = root if isinstance(root, Checkpoint) else Checkpoint.open(root)
        out = tmp_path / f"step-{len(list(tmp_path.iterdir()))}"
        return one.apply(checkpoint, PassContext(out, {"pass": one.name}, None, 0, lambda *_: None, []))

    return run


def random_weight(rows=96, columns=128, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def theirs(weight, double_quant):
    """bitsandbytes' own value of a weight after NF4, float32."""
    return functional.dequantize_4bit(
        *functional.quantize_4bit(weight, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
    )


# ---- one weight


@pytest.mark.parametrize("double_quant", [False, True])
def test_values_are_those_of_bitsandbytes(double_quant):
    weight = random_weight(rows=300)  # 600 scales: not a whole number of blocks of 256
    found = quantize(weight, double_quant)
    assert torch.equal(found.dequantize(), theirs(weight, double_quant))
    assert found.scheme == (DOUBLE if double_quant else PLAIN)
    assert found.codes.dtype == torch.uint8
    assert found.scales.shape == (300, 2)


def test_the_table_is_that_of_bitsandbytes():
    assert torch.equal(nf4.TABLE, functional.get_4bit_type("nf4", device="cpu"))


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_is_what_bitsandbytes_stores(double_quant, dtype):
    weight = random_weight().to(dtype)
    packed, state = functional.quantize_4bit(weight, compress_statistics=double_quant, quant_type="nf4")
    expected = {"weight": packed} | {f"weight.{key}": part for key, part in state.as_dict(packed=True).items()}
    found = layout.encode(quantize(weight.float(), double_quant), dtype)
    assert found.keys() == expected.keys()
    for suffix, tensor in expected.items():
        assert found[suffix].dtype == tensor.dtype, suffix
        if "quant_state" in suffix:
            assert json.loads(bytes(found[suffix].tolist())) == json.loads(bytes(tensor.tolist()))
        else:
            assert torch.equal(found[suffix], tensor), suffix


@pytest.mark.parametrize("scheme", [PLAIN, DOUBLE], ids=str)
def test_decoding_gives_back_what_was_encoded(scheme):
    weight = quantize(random_weight(rows=300), scheme.double_quant)
    stored = layout.encode(weight, torch.float32)
    shapes = layout.stored_shapes(scheme, (300, 128))
    assert shapes.keys() == stored.keys()
    assert all(shape is None or stored[suffix].shape == shape for suffix, shape in shapes.items())
    again = layout.decode(stored, scheme)
    assert again.same_bits(weight)
    twice = layout.encode(again, torch.float32)
    assert all(torch.equal(twice[suffix], tensor) for suffix, tensor in stored.items())
    assert sum(t.nbytes for suffix, t in stored.items() if "map" not in suffix and "state" not in suffix) * 8 == (
        weight.storage_bits
    )


def test_constant_and_zero_groups():
    weight = torch.zeros(2, 128)
    weight[0, :64] = 0.5
    found = quantize(weight, double_quant=False).dequantize()
    assert torch.equal(found, weight)


# ---- a model


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_the_step_reads_back_as_bitsandbytes_computes(tiny_model, apply, family, tied, double_quant):
    root = tiny_model(family, tied=tied)
    before = Checkpoint.open(root)
    one = NF4(double_quant=double_quant)
    step = apply(one, root)
    assert step.schemes == one.plan(before.architecture, {})
    assert len(step.schemes) == 14
    for name, found in step.read(list(step.parameters)).items():
        original = before.read([name])[name]
        if isinstance(found, QuantizedWeight):
            assert torch.equal(found.dequantize(), theirs(original, double_quant)), name
        else:
            assert torch.equal(found, original)


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({}, {}),
        ({"double_quant": True}, {"tied": False}),
        ({"skip": ("layers.1.mlp.up_proj", "*.o_proj")}, {}),
        ({"lm_head": True}, {"tied": True}),
        ({"lm_head": True, "double_quant": True}, {"tied": False}),
    ],
    ids=str,
)
def test_transformers_opens_it_and_computes_the_same(tiny_model, apply, options, model):
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM

    step = apply(NF4(**options), tiny_model("llama", **model))
    loaded = AutoModelForCausalLM.from_pretrained(step.root).eval()
    quantized = {name for name, module in loaded.named_modules() if isinstance(module, Linear4bit)}
    assert quantized == set(step.schemes)
    for name in quantized:
        weight = loaded.get_submodule(name).weight
        ours = step.read([f"{name}.weight"])[f"{name}.weight"].dequantize()
        assert torch.equal(functional.dequantize_4bit(weight.data, weight.quant_state), ours)
        # For training mode it has no fused kernels, and computes in the model's dtype.
        loaded.get_submodule(name).train()
    tokens = torch.arange(0, 250, 10).view(1, -1)
    decoder = Decoder(step)
    ours = decoder.logits(decoder.final_states(tokens), decoder.head())
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, ours, atol=2e-4, rtol=1e-4)
        # As it serves, in bfloat16 where the machine has instructions for it.
        torch.testing.assert_close(loaded.eval()(tokens).logits, ours, atol=0.1, rtol=0)


def test_16_bit_models_stay_so(tiny_model, apply, tmp_path):
    root = tiny_model("llama")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(root / "model.safetensors").items()}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    step = apply(NF4(), root)
    assert step.dtype == torch.bfloat16
    assert step.config["quantization_config"]["bnb_4bit_compute_dtype"] == "bfloat16"
    state = load_file(step.root / "model.safetensors")[f"{LAYER}.weight.quant_state.bitsandbytes__nf4"]
    assert json.loads(bytes(state.tolist()))["dtype"] == "bfloat16"


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_folder_of_transformers_own_is_read(tiny_model, tmp_path, double_quant):
    """What transformers quantizes and saves itself comes in with its values."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    root = tiny_model("llama")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant)
    model = AutoModelForCausalLM.from_pretrained(root, quantization_config=config)
    model.save_pretrained(tmp_path / "saved")
    checkpoint = Checkpoint.open(tmp_path / "saved")
    assert set(checkpoint.schemes.values()) == {DOUBLE if double_quant else PLAIN}
    original = Checkpoint.open(root).read([f"{LAYER}.weight"])[f"{LAYER}.weight"]
    found = checkpoint.read([f"{LAYER}.weight"])[f"{LAYER}.weight"].dequantize()
    assert torch.equal(found, theirs(original, double_quant))


def test_a_later_rewrite_changes_no_bit(tiny_model, apply, tmp_path):
    step = apply(NF4(double_quant=True), tiny_model("llama"))
    again = step.rewrite(tmp_path / "again", lambda block: block, {})
    first, second = (load_file(folder.root / "model.safetensors") for folder in (step, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- targets

TAKERS = ("hf", "hf-nf4")


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("options", [{}, {"double_quant": True, "skip": ("*.v_proj",)}, {"lm_head": True}], ids=str)
def test_it_is_taken_and_bitsandbytes_verifies_it(tiny_model, apply, tmp_path, name, options):
    step, target, out = apply(NF4(**options), tiny_model("llama")), make_target(name, {}), tmp_path / "artifact"
    assert check_plan(step, [], target)
    out.mkdir()
    target.lower(step, out, lambda *_: None)
    verified = verify(target, Artifact(out, "hf"), step, lambda *_: None)
    assert verified.mismatches == []
    assert verified.reader == "bitsandbytes"
    tensors = load_file(out / "model.safetensors")
    tensors[f"{LAYER}.weight"][5, 0] ^= 0x10
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    assert verify(target, Artifact(out, "hf"), step, lambda *_: None).mismatches == [f"{LAYER}.weight"]


def test_it_is_served_by_what_reads_it(tiny_model, apply):
    config = apply(NF4(), tiny_model("llama")).config
    assert make_target("hf", {}).run_command("a b", config) == "vllm serve 'a b' --port 8000"


@pytest.mark.parametrize("name", [name for name in names(TARGETS) if name not in TAKERS])
def test_other_targets_refuse_it(tiny_model, name):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    with pytest.raises(InputError, match=rf"{name} cannot take this: .*nf4"):
        check_plan(checkpoint, [NF4()], make_target(name, {}))


def test_hf_nf4_takes_nothing_else(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    with pytest.raises(InputError, match="No layer is quantized; add a quantizing pass such as nf4"):
        check_plan(checkpoint, [], make_target("hf-nf4", {}))
    with pytest.raises(InputError, match=r"int4 is not NF4; the pass nf4 works, or the target hf"):
        check_plan(checkpoint, [make_pass("rtn", {"group_size": 64})], make_target("hf-nf4", {}))


# ---- what is refused


def test_a_width_that_groups_do_not_divide(tiny_model):
    shape = Checkpoint.open(tiny_model("llama", intermediate_size=96)).architecture
    with pytest.raises(InputError, match=r"groups of 64, which does not divide the input width 96 of .*down_proj"):
        NF4().plan(shape, {})


def test_no_folder_holds_nf4_and_integers(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    rest = make_pass("rtn", {"group_size": 32, "skip": ["*.[qkvogu]*_proj"]})
    with pytest.raises(InputError, match=r"is nf4 g64 and .* is int4 g32 symmetric, which no single folder holds"):
        check_plan(checkpoint, [NF4(skip=("*.down_proj",)), rest], make_target("hf", {}))


def test_nothing_is_rounded_twice(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    with pytest.raises(InputError, match="already nf4 g64; a weight is rounded once"):
        check_plan(checkpoint, [NF4(), make_pass("rtn", {"group_size": 32})], make_target("hf", {}))


def test_a_missing_package_is_one_sentence(tiny_model, monkeypatch):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    monkeypatch.setattr("passes.nf4.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="nf4 needs the package bitsandbytes"):
        NF4().plan(shape, {})
    monkeypatch.setattr("targets.huggingface.find_spec", lambda name: None)
    assert "bitsandbytes" in make_target("hf", {}).problems(shape, {LAYER: PLAIN})[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bnb_4bit_quant_type": "fp4"}, r"bitsandbytes \(fp4, stored as uint8\)"),
        ({"load_in_8bit": True}, r"bitsandbytes \(8-bit"),
        ({"bnb_4bit_quant_storage": "bfloat16"}, "stored as bfloat16"),
        ({"bnb_4bit_use_double_quant": True}, "nested_absmax"),
    ],
    ids=str,
)
def test_other_kinds_of_bitsandbytes_are_refused(tiny_model, apply, changed, message):
    step = apply(NF4(), tiny_model("llama"))
    config = json.loads((step.root / "config.json").read_text())
    config["quantization_config"] |= changed
    (step.root / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        Checkpoint.open(step.root)


def stored_state(**changes):
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 128]} | changes
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("quant_state.bitsandbytes__nf4", torch.tensor([1, 2, 3], dtype=torch.uint8), "not valid JSON"),
        ("quant_state.bitsandbytes__nf4", stored_state(blocksize=128), "blocks of 128; 64 can be read"),
        ("quant_state.bitsandbytes__nf4", stored_state(shape=[64, 64]), "stored otherwise than config.json says"),
        ("quant_state.bitsandbytes__nf4", stored_state(shape=None), "gives no shape"),
        ("quant_map", torch.linspace(-1, 1, 16), "a table of its own"),
    ],
)
def test_a_damaged_weight(tiny_model, apply, part, tensor, message):
    step = apply(NF4(), tiny_model("llama"))
    tensors = load_file(step.root / "model.safetensors") | {f"{LAYER}.weight.{part}": tensor}
    save_file(tensors, step.root / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        Checkpoint.open(step.root).read([f"{LAYER}.weight"])
