"""Every folder for vLLM the whole way: the command line, the ledger, and the model opened again from the artifact."""

import json

import pytest

from compressor.checkpoint import Checkpoint
from compressor.cli import main
from compressor.plan import check_plan
from compressor.registry import make_pass, make_target, parse_spec
from compressor.source import open_model

WAYS = [
    ("vllm-int4", "rtn:group_size=32", "compressed-tensors"),
    ("vllm-int8", "rtn:bits=8,group_size=channel,activations=dynamic", "compressed-tensors"),
    ("vllm-fp8", "fp8", "compressed-tensors"),
    ("gptq", "rtn:bits=8,group_size=64", "numpy"),
    ("gptq", "rtn:group_size=32,symmetric=false", "numpy"),
    ("awq", "rtn:group_size=32,symmetric=false", "AutoAWQ converter"),
]


@pytest.mark.parametrize(("target", "spec", "reader"), WAYS)
def test_the_command_line(tiny_model, tmp_path, target, spec, reader):
    out = tmp_path / "out"
    words = ["compress", str(tiny_model("llama")), "-t", target, "--pass", spec, "--measure", "none", "-o", str(out)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    artifact = json.loads((out / "ledger.json").read_text())["artifact"]
    assert artifact["verified"]["mismatches"] == []
    assert reader in artifact["verified"]["reader"]
    step = Checkpoint.open(next((out / "steps").iterdir()))
    again = open_model(str(out / "artifact"), tmp_path / "import", progress=lambda *_: None).checkpoint
    assert again.schemes == step.schemes
    name = "model.layers.1.mlp.down_proj.weight"
    assert step.read([name])[name].same_bits(again.read([name])[name])


@pytest.mark.parametrize("name", sorted({target for target, _, _ in WAYS}))
def test_presets_fit_their_targets(tiny_model, name):
    checkpoint = Checkpoint.open(tiny_model("llama", hidden_size=128, head_dim=32))
    target = make_target(name, {})
    assert check_plan(checkpoint, [make_pass(*parse_spec(spec)) for spec in target.preset], target)
