"""What the ONNX targets refuse, and how they are spelled, listed and imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, MissingExtra
from compressor.quantized import Scheme
from compressor.registry import make_target
from targets.onnx import folder as module
from targets.onnx.target import OnnxFp32, OnnxInt4, OnnxInt8


@pytest.fixture
def architecture(tiny_model):
    return Checkpoint.open(tiny_model("llama")).architecture


def every_linear(architecture, scheme: Scheme) -> dict[str, Scheme]:
    return {name: scheme for name in architecture.linears() if name != "lm_head"}


@pytest.mark.parametrize(("target", "bits"), [(OnnxInt4(), 4), (OnnxInt8(), 8)])
@pytest.mark.parametrize("group", [None, 16, 32, 48, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_takes_its_own_bits(architecture, target, bits, group, symmetric):
    schemes = every_linear(architecture, Scheme(bits, group, symmetric))
    assert target.problems(architecture, schemes) == []
    skipped = {name: scheme for name, scheme in schemes.items() if "down_proj" not in name}
    assert target.problems(architecture, skipped) == []


def test_wrong_bits_name_the_layers_and_the_other_target(architecture):
    schemes = every_linear(architecture, Scheme(8, 32))
    schemes |= {f"model.layers.{index}.mlp.down_proj": Scheme(4, 32) for index in range(2)}
    (problem,) = OnnxInt8().problems(architecture, schemes)
    assert problem == (
        "onnx-int8 takes int8 weights, and model.layers.0.mlp.down_proj and 1 more have int4; "
        "quantize with rtn:bits=8, or choose onnx-int4."
    )


def test_int4_takes_int8_beside_its_own_and_not_alone(architecture):
    mixture = every_linear(architecture, Scheme(4, 32)) | {"model.layers.1.mlp.down_proj": Scheme(8, None)}
    assert OnnxInt4().problems(architecture, mixture | {"lm_head": Scheme(8, 32)}) == []
    (problem,) = OnnxInt4().problems(architecture, every_linear(architecture, Scheme(8, 32)))
    assert "choose onnx-int8" in problem
    (problem,) = OnnxInt4().problems(architecture, mixture | {"lm_head": Scheme(8, None, True, "float")})
    assert "lm_head has fp8" in problem


@pytest.mark.parametrize(("target", "preset"), [(OnnxInt4(), "gptq:bits=4"), (OnnxInt8(), "rtn:bits=8")])
def test_unquantized_models_are_sent_to_a_pass(architecture, target, preset):
    (problem,) = target.problems(architecture, {})
    assert problem == f"{target.name} needs int{preset[-1]} weights; add a quantizing pass such as {preset}."
    assert target.preset == (preset,)


def test_fp32_takes_no_quantized_weights(architecture):
    assert OnnxFp32().problems(architecture, {}) == []
    (problem,) = OnnxFp32().problems(architecture, {"lm_head": Scheme(8, None)})
    assert "lm_head has int8" in problem
    assert "choose onnx-int8" in problem


def test_groups_that_no_block_fits(architecture):
    (problem,) = OnnxInt4().problems(architecture, every_linear(architecture, Scheme(4, 24)))
    assert "group_size=24" in problem
    assert "use group_size=32, 64 or 128" in problem


def test_shapes_that_the_graph_cannot_express(architecture):
    odd = replace(architecture, activation="quick_gelu", head_dim=20)
    problems = OnnxFp32().problems(odd, {})
    assert len(problems) == 2
    assert "gelu" in problems[0]
    assert "multiple of 8, not 20" in problems[1]


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_rotary_tables_that_change_with_the_text_are_refused(tiny_model, scaling):
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8} if scaling == "longrope" else {}
    rope = {"rope_type": scaling, "factor": 2.0, "rope_theta": 10000.0, **factors}
    checkpoint = Checkpoint.open(tiny_model("llama", rope_parameters=rope))
    (problem,) = OnnxFp32().problems(checkpoint.architecture, {})
    assert f"'{scaling}' changes with the length of the text" in problem


def test_accuracy_level_is_an_option():
    assert OnnxInt4().spelled() == "onnx-int4"
    assert make_target("onnx-int4", {"accuracy_level": 0}).spelled() == "onnx-int4:accuracy_level=0"
    with pytest.raises(InputError, match="accuracy_level=7 is not allowed"):
        make_target("onnx-int4", {"accuracy_level": 7})


def test_int4_reports_the_exact_level_and_ships_the_fast_one():
    assert [(variant.label, dict(variant.options)) for variant in OnnxInt4().variants] == [
        ("level 0", {"accuracy_level": 0}),
        ("", {}),
    ]
    assert len(OnnxInt4(accuracy_level=0).variants) == 1
    assert (OnnxInt4.baseline, OnnxInt8.baseline, OnnxFp32.baseline) == ("onnx-fp32", "onnx-fp32", None)


def test_the_folder_is_what_runtimes_look_for(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32))
    artifact, _ = lower(OnnxInt4(), checkpoint)
    names = {"model.onnx", "model.onnx.data", "genai_config.json", "config.json", "tokenizer.json"}
    assert names <= artifact.files.keys()
    assert "quantization_config" not in (artifact.root / "config.json").read_text()


def test_equal_models_give_equal_files(tiny_model, lower):
    first, second = (lower(OnnxFp32(), Checkpoint.open(tiny_model("qwen3")))[0] for _ in range(2))
    assert first.digest == second.digest


def test_a_missing_package_is_one_sentence(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert OnnxFp32().why_not_run() == "onnx is not installed (pip install 'llmc-compiler[onnx]')"
    with pytest.raises(MissingExtra, match="needs the package onnx, which"):
        OnnxFp32().lower(Checkpoint.open(tiny_model("llama")), tmp_path, lambda *_: None)


def test_importing_the_targets_is_light():
    code = "import sys, targets.onnx.target; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnx", "onnxruntime", "transformers"} & set(done.stdout.split())
