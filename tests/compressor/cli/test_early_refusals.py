"""What a target cannot hold is refused before any work, where headers or one reading of the tensors tell."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.requirements import unfit

EMBEDDING = "model.embed_tokens.weight"
LAYER = "model.layers.1.mlp.down_proj"


def replace_tensors(root, **changed):
    tensors = load_file(root / "model.safetensors")
    save_file(tensors | changed, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture
def refused(llmc, tmp_path):
    """Run a request that must be refused, for real and as a dry run; the sentence, and nothing is left."""

    def run(root, *words):
        out = tmp_path / "out"
        for mode in ("--dry-run", "--resume"):
            code, _, err = llmc("compress", root, *words, "--measure", "none", "-o", out, mode)
            assert code == 2
            assert not out.exists()
        return err

    return run


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("trt-int4:dtype=float16", "dtype=bfloat16 works"),
        ("vllm-int4:dtype=float16", "dtype=bfloat16 works"),
        ("gguf-q4_0:dtype=float16", "dtype=bfloat16 works"),
        ("onnx-fp16", "The target onnx-fp32 works"),
    ],
)
def test_a_value_beyond_float16(tiny_model, refused, target, remedy):
    table = torch.zeros(288, 64)
    table[7, 7] = -1e5
    root = replace_tensors(tiny_model("llama"), **{EMBEDDING: table})
    passes = () if target == "onnx-fp16" else ("--pass", "rtn:group_size=64")
    err = refused(root, "-t", target, *passes)
    assert f"{EMBEDDING} holds -1e+05, which float16 does not reach" in err
    assert remedy in err


def test_two_dtypes(tiny_model, refused, recast_to_half):
    root = replace_tensors(recast_to_half(tiny_model("llama")), **{EMBEDDING: torch.zeros(288, 64)})
    err = refused(root, "-t", "trt-int4", "--pass", "rtn:group_size=64")
    assert "The checkpoint mixes float16 and float32, so that dtype=auto has no answer" in err
    assert "dtype=bfloat16 or dtype=float16 works" in err


@pytest.fixture
def recast_to_half():
    def recast(root):
        halves = {name: tensor.half() for name, tensor in load_file(root / "model.safetensors").items()}
        return replace_tensors(root, **halves)

    return recast


def test_what_a_pass_rounds_or_changes_is_not_judged_before(tiny_model, llmc, recast_to_half, tmp_path):
    """The one tensor of another dtype is quantized, so that the rest has a dtype."""
    root = recast_to_half(tiny_model("llama"))
    wide = load_file(root / "model.safetensors")[f"{LAYER}.weight"].float()
    replace_tensors(root, **{f"{LAYER}.weight": wide})
    words = ("-t", "trt-int4", "--pass", "rtn:group_size=64", "--measure", "none", "-o", tmp_path / "out")
    assert llmc("compress", root, *words)[0] == 0


@pytest.fixture(scope="module")
def quantized_model(tiny_models, tmp_path_factory):
    """A quantized model that a run has made, to be read only."""
    from compressor.cli import main

    out = tmp_path_factory.mktemp("quantized") / "made"
    words = ("-t", "hf", "--pass", "rtn:group_size=64", "--measure", "none", "-o", out)
    with pytest.raises(SystemExit, match="0"):
        main(["compress", str(tiny_models("llama")), *map(str, words)])
    return out / "artifact"


@pytest.fixture
def with_scale(quantized_model, tmp_path):
    """That model with another number for one scale."""

    def make(scale):
        root = shutil.copytree(quantized_model, tmp_path / "artifact")
        (root / "llmc-manifest.json").unlink()
        scales = load_file(root / "model.safetensors")[f"{LAYER}.weight_scale"].clone()
        scales[3, 0] = scale
        return replace_tensors(root, **{f"{LAYER}.weight_scale": scales})

    return make


@pytest.mark.parametrize("scale", [1e5, 2.0**-26, 1 / 3])
@pytest.mark.parametrize("target", ["gptq", "gguf-q4_0", "awq"])
def test_scales_of_a_quantized_model(with_scale, refused, target, scale):
    """Beyond float16, below its steps, between them."""
    err = refused(with_scale(scale), "-t", target)
    assert f"The scales of {LAYER} are not exact in float16" in err
    assert "--requantize" in err


@pytest.mark.parametrize(
    ("dtype", "scale", "says"),
    [
        ("float16", 1e5, f"The scales of {LAYER} are beyond float16, in which they are served. dtype=bfloat16 works."),
        ("float16", 2.0**-26, f"The scales of {LAYER} are not exact in float16, in which they are served."),
        ("bfloat16", 1025 / 1024, f"The scales of {LAYER} are not exact in bfloat16, in which they are served."),
    ],
)
def test_scales_that_tensorrt_llm_need_not_round(with_scale, refused, dtype, scale, says):
    assert says in refused(with_scale(scale), "-t", f"trt-int4:dtype={dtype}")


@pytest.mark.parametrize("scale", [1e5, 2.0**-26, 1 / 3])
def test_scales_that_tensorrt_llm_rounds_in_any_case_are_stored_as_they_are(with_scale, llmc, tmp_path, scale):
    """bfloat16 reaches as far as float32; what neither it nor float16 holds is said."""
    out = tmp_path / "out"
    assert llmc("compress", with_scale(scale), "-t", "trt-int4", "--measure", "none", "-o", out)[0] == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["artifact"]["verified"]["mismatches"] == []
    said = any("the scales of 1 layers are not exact in bfloat16" in note for note in ledger["steps"][-1]["notes"])
    assert said == (scale != 2.0**-26)


# ---- runtimes


def test_without_a_runtime_the_artifact_is_written_and_the_ledger_says_so(tiny_model, llmc, tmp_path):
    out = tmp_path / "out"
    workload = ("--prompt", 8, "--output-tokens", 4)
    words = ("-t", "trt-int4", "--pass", "rtn:group_size=64", *workload, "-o", out)
    assert llmc("compress", tiny_model("llama"), *words)[0] == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["artifact"]["verified"]["mismatches"] == []
    assert "needs an NVIDIA GPU" in ledger["steps"][-1]["not_run"]
    code, shown, _ = llmc("verify", out)
    assert code == 5
    assert "not run: none was recorded, since TensorRT-LLM needs an NVIDIA GPU" in shown


def test_onnx_files_are_refused_where_they_cannot_be_read_back(tiny_model, refused, monkeypatch):
    monkeypatch.setattr("targets.onnx.folder.find_spec", lambda name: None)
    err = refused(tiny_model("llama"), "-t", "onnx-int4", "--pass", "rtn:group_size=32")
    assert "ONNX files need onnx, which is missing; pip install 'llmc-compiler[onnx]'" in err


@pytest.mark.parametrize(("target", "package"), [("hf", "transformers"), ("onnx-fp32", "onnxruntime")])
def test_a_runtime_of_an_unfit_version_is_not_asked(tiny_model, llmc, tmp_path, monkeypatch, target, package):
    """An artifact is written and checked all the same; another version that fits is only mentioned."""
    out = tmp_path / "out"
    (tmp_path / "recipe.yaml").write_text(f"model: {tiny_model('llama')}\ntarget: {target}\npasses: []\n")
    words = ("--recipe", tmp_path / "recipe.yaml", "--prompt", 8, "--output-tokens", 4, "-o", out)
    assert llmc("compress", *words)[0] == 0
    assert unfit(package) is None
    monkeypatch.setattr("compressor.requirements.version", lambda name: "1.2.3")
    code, shown, _ = llmc("verify", out)
    assert code == 5
    assert f"generation not run: {package} 1.2.3 is installed, and llmc works with" in shown


# ---- models that are converted first


@pytest.fixture
def forbid_conversion(monkeypatch):
    """From now on no model is converted."""

    def forbid():
        for place in ("source", "dequantize", "gguf.importer", "prequantized.importer"):
            monkeypatch.setattr(f"compressor.{place}.write_converted", lambda *_, **__: pytest.fail("converted"))

    return forbid


ANEW = ("--requantize", "--pass", "rtn:group_size=128")
NO_INT8, NO_GROUP = "int8 is not what this target holds", "128 does not divide"


@pytest.mark.parametrize(
    ("kind", "words", "says"), [("F32", ANEW[1:], NO_GROUP), ("Q8_0", (), NO_INT8), ("Q8_0", ANEW, NO_GROUP)]
)
def test_what_does_not_fit_is_known_from_the_header_of_a_gguf_file(
    tiny_model, gguf_of, refused, forbid_conversion, kind, words, says
):
    forbid_conversion()
    assert says in refused(gguf_of(tiny_model("llama"), kind), "-t", "trt-int4", *words)


@pytest.mark.parametrize(
    ("target", "words", "says"), [("gptq", (), NO_INT8), ("gptq", ANEW, NO_GROUP), ("hf", ANEW, NO_GROUP)]
)
def test_and_from_those_of_a_quantized_folder(tiny_model, llmc, refused, forbid_conversion, target, words, says):
    root = tiny_model("llama")
    made = root.with_name("made")
    rounded = ("--pass", "rtn:bits=8,group_size=32", "--measure", "none")
    assert llmc("compress", root, "-t", target, *rounded, "-o", made)[0] == 0
    forbid_conversion()
    assert says in refused(made / "artifact", "-t", "trt-int4", *words)


def test_and_from_the_config_of_a_pickled_model(tiny_model, refused, forbid_conversion):
    root = tiny_model("llama")
    torch.save(load_file(root / "model.safetensors"), root / "pytorch_model.bin")
    (root / "model.safetensors").unlink()
    forbid_conversion()
    assert NO_GROUP in refused(root, "--allow-pickle", "-t", "trt-int4", *ANEW[1:])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"eos_token_id": 1,}', "is not valid JSON (line 1)"),
        (b"[1]", "is not a JSON object"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
        (b'{"max_new_tokens": 0}', "`max_new_tokens` must be greater than 0"),
    ],
)
def test_a_broken_generation_config(tiny_model, refused, content, sentence):
    root = tiny_model("llama")
    (root / "generation_config.json").write_bytes(content)
    assert sentence in " ".join(refused(root, "-t", "hf", "--pass", "rtn:group_size=32").split())
