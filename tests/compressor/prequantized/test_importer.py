"""Folders of GPTQModel and AutoAWQ come in with the integers, zero points and scales that were put into them."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from compressor.checkpoint import Checkpoint
from compressor.cli import main
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.inspection import describe
from compressor.quantized import Scheme
from compressor.source import open_model

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture
def take(tmp_path):
    return lambda root: open_model(str(root), tmp_path / "import", progress=lambda *_: None)


def assert_holds(checkpoint, linears, symmetric):
    """The checkpoint's integers, zero points and scales are those of `linears`, bit for bit."""
    assert set(checkpoint.schemes) == set(linears)
    for layer, wanted in linears.items():
        found = checkpoint.read([f"{layer}.weight"])[f"{layer}.weight"]
        middle = 2 ** (found.scheme.bits - 1)
        np.testing.assert_array_equal(found.codes.numpy().astype(int) + middle, wanted.codes)
        np.testing.assert_array_equal(found.scales.numpy(), wanted.scales.astype(np.float32))
        if symmetric:
            assert found.zero_points is None
        else:
            np.testing.assert_array_equal(found.zero_points.numpy().astype(int) + middle, wanted.zeros)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, -1), (8, 64), (8, -1)])
def test_gptq(packed_model, take, bits, group_size, symmetric, version):
    root, linears = packed_model(bits=bits, group_size=group_size, symmetric=symmetric, version=version)
    source = take(root)
    expected = Scheme(bits, None if group_size == -1 else group_size, symmetric)
    assert set(source.checkpoint.schemes.values()) == {expected}
    assert len(linears) == 14
    assert_holds(source.checkpoint, linears, symmetric)
    assert source.imported.startswith(f"repacked from GPTQ v{version} to compressed-tensors")


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(packed_model, take, group_size, symmetric):
    settings = {"zero_point": not symmetric}
    root, linears = packed_model("awq", group_size=group_size, symmetric=symmetric, settings=settings)
    source = take(root)
    assert set(source.checkpoint.schemes.values()) == {Scheme(4, None if group_size == -1 else group_size, symmetric)}
    assert_holds(source.checkpoint, linears, symmetric)


@pytest.mark.parametrize(("method", "version"), [("awq", 2), ("gptq", 1), ("gptq", 2)])
def test_zero_points_in_the_middle_are_none(packed_model, take, method, version):
    """AutoAWQ stores zero points whatever they are; where all are 8, runtimes without them can have the model."""
    root, linears = packed_model(method, version=version)
    assert_holds(take(root).checkpoint, linears, symmetric=False)
    root, linears = packed_model(method, version=version, symmetric=True, settings={"zero_point": True, "sym": False})
    checkpoint = open_model(str(root), root.parent / "other", progress=lambda *_: None).checkpoint
    assert set(checkpoint.schemes.values()) == {Scheme(4, 32)}
    assert_holds(checkpoint, linears, symmetric=True)


def test_one_zero_point_elsewhere_and_all_are_kept(packed_model, take):
    root, _ = packed_model("awq", symmetric=True)
    tensors = load_file(root / "model.safetensors")
    tensors[f"{LAYER}.qzeros"][0, 0] += 1
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    checkpoint = take(root).checkpoint
    assert set(checkpoint.schemes.values()) == {Scheme(4, 32, symmetric=False)}
    assert int(checkpoint.read([f"{LAYER}.weight"])[f"{LAYER}.weight"].zero_points.count_nonzero()) == 1


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_everything_else_is_carried_over(packed_model, take, family, tied):
    root, linears = packed_model(family=family, tied=tied)
    checkpoint = take(root).checkpoint
    stored = load_file(root / "model.safetensors")
    floats = [name for name in checkpoint.architecture.tensor_shapes() if name.removesuffix(".weight") not in linears]
    assert floats
    for name, tensor in checkpoint.read(floats).items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, stored[name])
    assert checkpoint.architecture.tied_embeddings == tied
    assert AutoTokenizer.from_pretrained(checkpoint.root)("a")["input_ids"]


def test_it_computes(packed_model, take):
    """The import runs, and equals a model that holds the dequantized numbers (u - zero) * scale."""
    root, linears = packed_model()
    checkpoint = take(root).checkpoint
    wanted = (linears[LAYER].codes.reshape(64, -1, 32) - linears[LAYER].zeros[..., None]) * linears[LAYER].scales[
        ..., None
    ].astype(np.float32)
    found = checkpoint.read([f"{LAYER}.weight"])[f"{LAYER}.weight"].dequantize()
    np.testing.assert_array_equal(found.numpy(), wanted.reshape(64, 128))
    assert bool(torch.isfinite(Decoder(checkpoint).final_states(torch.arange(8)[None])).all())


def test_scales_that_the_models_dtype_would_round_stay_exact(packed_model, take):
    root, linears = packed_model(dtype=torch.bfloat16)
    scales = torch.from_numpy(linears[LAYER].scales)
    assert not torch.equal(scales.bfloat16().float(), scales.float())
    checkpoint = take(root).checkpoint
    assert checkpoint.dtype == torch.bfloat16
    assert_holds(checkpoint, linears, symmetric=False)
    again = checkpoint.rewrite(root.parent / "step", lambda block: block, {})
    assert_holds(again, linears, symmetric=False)


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_head(packed_model, take, tied):
    root, linears = packed_model(lm_head=True, tied=tied, settings={"lm_head": True})
    assert "lm_head" in linears
    checkpoint = take(root).checkpoint
    assert_holds(checkpoint, linears, symmetric=False)
    assert not checkpoint.architecture.tied_embeddings


def test_rules_give_layers_their_own_settings(packed_model, take):
    dynamic = {
        r"+:.*\.down_proj": {"bits": 8, "group_size": 64},
        r".*\.v_proj": {"group_size": -1},
        r"-:.*layers\.1\.mlp\.up_proj": {},
    }
    own = {"down_proj": (8, 64), "v_proj": (4, -1), "layers.1.mlp.up_proj": None}
    root, linears = packed_model(layer_settings=own, settings={"dynamic": dynamic})
    checkpoint = take(root).checkpoint
    assert checkpoint.schemes[LAYER] == Scheme(8, 64, symmetric=False)
    assert checkpoint.schemes["model.layers.0.self_attn.v_proj"] == Scheme(4, None, symmetric=False)
    assert "model.layers.1.mlp.up_proj" not in checkpoint.schemes
    assert_holds(checkpoint, linears, symmetric=False)


def test_an_old_folder_with_a_config_of_its_own(packed_model, take):
    root, linears = packed_model(version=1)
    config = json.loads((root / "config.json").read_text())
    old = config.pop("quantization_config")
    del old["quant_method"], old["checkpoint_format"]
    (root / "config.json").write_text(json.dumps(config))
    (root / "quantize_config.json").write_text(json.dumps(old))
    assert_holds(take(root).checkpoint, linears, symmetric=False)


def test_biases_of_zeros_are_dropped(packed_model, take):
    root, linears = packed_model(extra={f"{LAYER}.bias": torch.zeros(64, dtype=torch.float16)})
    assert_holds(take(root).checkpoint, linears, symmetric=False)


def test_a_second_opening_uses_the_import_again(packed_model, take):
    root, _ = packed_model()
    first = take(root).checkpoint
    made = (first.root / "model.safetensors").stat().st_mtime_ns
    assert (take(root).checkpoint.root / "model.safetensors").stat().st_mtime_ns == made


# ---- version 1 and its zero point of 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_that_borrowed_is_given_back(packed_model, pack_words, take, bits):
    """GPTQModel makes version 1 of version 2 by one subtraction over each whole word."""
    ones = {4: 0x11111111, 8: 0x01010101}[bits]
    meta = {"quantizer": ["gptqmodel:5.0.0"]}
    root, linears = packed_model(bits=bits, version=2, settings={"checkpoint_format": "gptq", "meta": meta})
    tensors = load_file(root / "model.safetensors")
    for layer, linear in linears.items():
        linear.zeros[::3] = 0
        tensors[f"{layer}.qzeros"] = (pack_words(linear.zeros.T, bits) - ones).contiguous()
    save_file(tensors, root / "model.safetensors")
    assert_holds(take(root).checkpoint, linears, symmetric=False)


def test_a_zero_point_of_0_is_refused_from_other_writers(packed_model, take):
    root, _ = packed_model(version=1)
    tensors = load_file(root / "model.safetensors")
    tensors[f"{LAYER}.qzeros"][0, 0] |= 0xF0
    save_file(tensors, root / "model.safetensors")
    with pytest.raises(InputError, match=rf"A zero point of {LAYER} is 0, which GPTQ v1 cannot hold") as caught:
        take(root)
    assert caught.value.hint == "Save the model again as gptq_v2."


# ---- an independent reader


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("method", "bits"), [("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_onnxruntime_genai_reads_the_same_integers(packed_model, take, method, bits, symmetric):
    reason = "onnxruntime-genai is not installed"
    loader = pytest.importorskip(f"onnxruntime_genai.models.loaders.{method}", reason=reason)
    settings = {} if method == "gptq" else {"zero_point": not symmetric}
    root, _ = packed_model(method, bits=bits, symmetric=symmetric, version=1, settings=settings)
    attrs = {"config": json.loads((root / "config.json").read_text())["quantization_config"], "use_g_idx": False}
    model = loader.GPTQModel if method == "gptq" else loader.AWQModel
    theirs = model(method, str(root), attrs, 64, 32, 128, 2)
    checkpoint = take(root).checkpoint
    for index, layer in enumerate(theirs.layers):
        for part in ("self_attn.q_proj", "mlp.down_proj"):
            parent, name = part.split(".")
            module = getattr(getattr(layer, parent), name)
            ours = checkpoint.read([f"model.layers.{index}.{part}.weight"])[f"model.layers.{index}.{part}.weight"]
            np.testing.assert_array_equal(module.scales.float().numpy().reshape(ours.scales.shape), ours.scales)
            assert torch.equal(unpacked(module.qweight, bits, ours.codes.shape), ours.codes.int() + 2 ** (bits - 1))
            zeros = torch.zeros_like(ours.scales) if ours.zero_points is None else ours.zero_points
            assert torch.equal(unpacked(module.qzeros, bits, zeros.shape), zeros.int() + 2 ** (bits - 1))


def unpacked(blocks, bits, shape):
    """Integers of a MatMulNBits weight: uint8 [out, bytes], low first."""
    if bits == 4:
        blocks = torch.stack((blocks & 15, blocks >> 4), dim=-1)
    return blocks.reshape(shape).int()


# ---- what is refused


def test_act_order_across_groups(packed_model, take):
    order = torch.from_numpy(np.random.default_rng(0).permutation(128)).int() // 32
    root, _ = packed_model(settings={"desc_act": True}, extra={f"{LAYER}.g_idx": order})
    with pytest.raises(InputError, match=rf"{LAYER} was rounded with act-order \(desc_act\)") as caught:
        take(root)
    assert "--requantize" in caught.value.hint


def test_what_a_verb_without_requantize_says_of_act_order_works(packed_model, llmc, tmp_path):
    order = torch.from_numpy(np.random.default_rng(0).permutation(128)).int() // 32
    root, _ = packed_model(settings={"desc_act": True}, extra={f"{LAYER}.g_idx": order})
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a weight. " * 40)
    words = ("audit", text, "--samples", 4, "--length", 32, "--model")
    code, _, err = llmc(*words, root)
    assert (code, "`llmc compress MODEL --requantize ...`" in err, "steps/00-import" in err) == (2, True, True)
    passes = ("-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none")
    assert llmc("compress", root, "--requantize", *passes, "-o", tmp_path / "out")[0] == 0
    assert llmc(*words, tmp_path / "out" / "steps" / "00-import")[0] == 0


def test_act_order_of_one_group_is_none(packed_model, take):
    root, linears = packed_model(group_size=-1, settings={"desc_act": True})
    assert_holds(take(root).checkpoint, linears, symmetric=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_format": "marlin"}, "stored as marlin"),
        ({"pack_dtype": "int16"}, "in int16 words"),
        ({"bits": 3}, "3 bits a weight, of which 4 and 8 can be read"),
        ({"bits": "four"}, "bits='four'"),
        ({"group_size": 0}, "group_size=0"),
        ({"sym": True}, r"says sym=true, but the zero points of .* are not all 8"),
        ({"group_size": 64}, r"has shape \[2, 8\]; .*config.json says \[1, 8\]"),
        ({"dynamic": {"-:.*down_proj": {}}}, "stored quantized, but the rule '-:.*down_proj' says that it is not"),
        ({"dynamic": {"(": {}}}, "no regular expression"),
        ({"dynamic": [1]}, "dynamic="),
    ],
    ids=str,
)
def test_settings_that_cannot_be_read(packed_model, take, settings, message):
    root, _ = packed_model(settings=settings)
    with pytest.raises(InputError, match=message):
        take(root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "gemv"}, "4 bits as gemv"),
        ({"bits": 8}, "8 bits as gemm"),
        ({"zero_point": False}, "zero_point=false, but the zero points"),
    ],
)
def test_awq_settings_that_cannot_be_read(packed_model, take, settings, message):
    root, _ = packed_model("awq", settings=settings)
    with pytest.raises(InputError, match=message):
        take(root)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{LAYER}.bias": torch.ones(64)}, f"{LAYER}.bias has no place"),
        ({f"{LAYER}.weight": torch.ones(64, 128)}, f"{LAYER}.weight has no place"),
        ({f"{LAYER}.scales": torch.full((4, 64), torch.inf)}, "holds Inf"),
        ({f"{LAYER}.qweight": torch.ones(8, 64, dtype=torch.int32)}, r"has shape \[8, 64\]"),
    ],
    ids=["bias", "weight too", "inf", "shape"],
)
def test_tensors_that_do_not_fit(packed_model, take, tmp_path, extra, message):
    root, _ = packed_model(extra=extra)
    with pytest.raises(InputError, match=message):
        take(root)
    assert not (tmp_path / "import").exists()


def test_a_missing_part(packed_model, take):
    root, _ = packed_model()
    tensors = load_file(root / "model.safetensors")
    del tensors[f"{LAYER}.scales"]
    save_file(tensors, root / "model.safetensors")
    with pytest.raises(InputError, match=f"has no tensor {LAYER}.scales"):
        take(root)


# ---- inspect


def test_inspect_reads_headers_only(packed_model, monkeypatch):
    root, _ = packed_model(version=1)
    monkeypatch.setattr("compressor.prequantized.folder.read_tensors", types.NoneType)
    facts = describe(root)
    assert facts["kind"] == "GPTQ v1 model folder"
    assert facts["quantized linears"] == {"int4 g32 asymmetric": 14}
    assert facts["dtype"] == "float16"


def test_checkpoint_itself_names_what_it_is(packed_model):
    root, _ = packed_model()
    with pytest.raises(InputError, match="already quantized"):
        Checkpoint.open(root)


# ---- the whole way


def test_it_ships_without_being_rounded_again(packed_model, tmp_path):
    """A target's preset would quantize; a model that is quantized already goes through as it is."""
    root, linears = packed_model(version=1, symmetric=True)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(root), "--target", "vllm-int4", "--measure", "none", "-o", str(out)])
    assert stop.value.code == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["recipe"]["passes"] == []
    assert ledger["steps"][0]["notes"] == [
        "repacked from GPTQ v1 to compressed-tensors; integers, zero points and scales are unchanged"
    ]
    assert ledger["artifact"]["verified"]["mismatches"] == []
    assert_holds(Checkpoint.open(out / "artifact"), linears, symmetric=True)


def test_an_awq_folder_of_symmetric_weights_goes_where_there_are_no_zero_points(packed_model, llmc, tmp_path):
    root, linears = packed_model("awq", group_size=64, symmetric=True, dtype=torch.float16)
    narrow_scales(root, linears)
    code, _, _ = llmc("compress", root, "--target", "trt-int4", "--measure", "none", "-o", tmp_path / "out")
    assert code == 0
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert (ledger["recipe"]["passes"], ledger["recipe"]["requantize"]) == ([], False)
    assert [row["name"] for row in ledger["steps"]] == ["original", "trt-int4"]
    assert ledger["artifact"]["verified"] == {
        "reader": "unpacker written from the layout's text (numpy)", "weights": 20, "mismatches": [],
    }  # fmt: skip


def narrow_scales(root, linears):
    """Scales with as few bits as both 16-bit dtypes have."""
    tensors = load_file(root / "model.safetensors")
    for layer in linears:
        tensors[f"{layer}.scales"] = tensors[f"{layer}.scales"].bfloat16().half()
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-t", "trt-int4"), "zero points are not read by TensorRT-LLM"),
        (("-t", "onnx-int8"), "onnx-int8 takes int8 weights"),
        (("-t", "onnx-fp32"), "onnx-fp32 takes no quantized weights"),
        (("-t", "gptq", "--pass", "rtn:group_size=32"), "is already int4 g32 asymmetric; a weight is rounded once"),
        (("-t", "gptq", "--bits", "8"), "is already int4 g32 asymmetric; a weight is rounded once"),
        (("-t", "vllm-int4", "--pass", "smoothquant", "--calibration", "wikitext"), "re-scales model.layers.0"),
        (("-t", "hf", "--pass", "rotate"), "is already int4 g32 asymmetric; a weight is rounded once"),
    ],
)
@pytest.mark.parametrize("mode", ["--dry-run", "--resume"])
def test_what_does_not_fit_is_refused_before_work_and_names_requantize(
    packed_model, llmc, tmp_path, words, message, mode
):
    root, _ = packed_model("awq")
    code, _, err = llmc("compress", root, *words, "--measure", "none", "-o", tmp_path / "out", mode)
    assert (code, message in err) == (2, True)
    assert "--requantize dequantizes" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ((), ["original", "gptq:bits=8,group_size=channel", "trt-int8"]),
        (("--pass", "rtn:bits=8,group_size=channel"), ["original", "rtn:bits=8,group_size=channel", "trt-int8"]),
    ],
)
def test_requantize_runs_the_preset_or_the_passes_and_says_so(packed_model, llmc, tmp_path, words, passes):
    root, linears = packed_model("awq")
    (tmp_path / "text.txt").write_text("Once upon a time there was a weight that was rounded twice. " * 40)
    calibration = ("--calibration", tmp_path / "text.txt", "--samples", 4, "--length", 32)
    common = ("-t", "trt-int8", "--measure", "none", "-o", tmp_path / "out", "--requantize")
    code, _, _ = llmc("compress", root, *common, *words, *calibration)
    assert code == 0
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert [row["name"] for row in ledger["steps"]] == passes
    assert ledger["recipe"]["requantize"]
    (note,) = ledger["steps"][0]["notes"]
    assert note.startswith("dequantized from AWQ GEMM to float32, as --requantize asks")
    assert note.endswith("rounds them for the second time")
    floats = Checkpoint.open(tmp_path / "out" / "steps" / "00-import")
    assert floats.schemes == {}
    wanted = (linears[LAYER].codes.reshape(64, -1, 32) - linears[LAYER].zeros[..., None]) * linears[LAYER].scales[
        ..., None
    ].astype(np.float32)
    np.testing.assert_array_equal(floats.read([f"{LAYER}.weight"])[f"{LAYER}.weight"].numpy(), wanted.reshape(64, 128))
    assert llmc("compress", "--recipe", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again")[0] == 0


def test_a_pass_that_rounds_no_layer_may_follow(packed_model, llmc, tmp_path):
    root, linears = packed_model()
    words = ("-t", "hf", "--pass", "embeddings", "--measure", "none", "-o", tmp_path / "out")
    assert llmc("compress", root, *words)[0] == 0
    checkpoint = Checkpoint.open(tmp_path / "out" / "artifact")
    assert checkpoint.schemes["model.embed_tokens"].kind == "int8"
    assert_layers(checkpoint, linears)


def assert_layers(checkpoint, linears):
    for layer, wanted in linears.items():
        found = checkpoint.read([f"{layer}.weight"])[f"{layer}.weight"]
        np.testing.assert_array_equal(found.codes.numpy().astype(int) + 8, wanted.codes)


@pytest.mark.parametrize(
    ("own", "dynamic", "sentence"),
    [
        ({"k_proj": (4, 64)}, {r".*\.k_proj": {"group_size": 64}}, "fuses q_proj/k_proj/v_proj, which have different"),
        ({"layers.1.mlp.up_proj": None}, {r"-:.*1\.mlp\.up_proj": {}}, "fuses gate_proj/up_proj; quantize all of them"),
    ],
)
@pytest.mark.parametrize("target", ["vllm-int4", "trt-int4", "gptq"])
def test_layers_that_are_fused_and_differ(packed_model, llmc, tmp_path, target, own, dynamic, sentence):
    """Folders of other tools may give each layer its settings, which runtimes that fuse layers do not take."""
    root, _ = packed_model(symmetric=True, group_size=32, layer_settings=own, settings={"dynamic": dynamic})
    code, _, err = llmc("compress", root, "-t", target, "--measure", "none", "-o", tmp_path / "out")
    assert (code, sentence in err) == (2, True)
    assert not (tmp_path / "out").exists()
    assert llmc("compress", root, "-t", "hf", "--measure", "none", "-o", tmp_path / "out")[0] == 0
