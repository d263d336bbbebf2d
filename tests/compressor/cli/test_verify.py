"""`llmc verify`: what it says, and its exit code."""

import json

import pytest

from compressor.target import MANIFEST


@pytest.fixture
def run(llmc, tiny_model, tmp_path):
    """The folder of a finished run."""
    out = tmp_path / "out"
    words = ("-t", "hf", "--pass", "rtn:group_size=32", "--prompt", 8, "--output-tokens", 4, "-o", out)
    assert llmc("compress", tiny_model("llama"), *words)[0] == 0
    return out


def test_a_whole_artifact_is_exit_code_0(llmc, run):
    code, shown, err = llmc("verify", run / "artifact")
    assert (code, err) == (0, "")
    assert "20 weights read back by compressed-tensors" in shown
    assert "16 tokens as recorded" in shown
    assert shown.count("✓") == 5
    code, shown, _ = llmc("verify", run, "--json")
    verdict = json.loads(shown)
    assert (code, verdict["intact"], verdict["target"]) == (0, True, "hf")
    assert [check["name"] for check in verdict["checks"]] == ["manifest", "files", "structure", "weights", "generation"]


def test_damage_is_exit_code_1_and_says_where(llmc, run):
    shard = run / "artifact" / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    code, shown, _ = llmc("verify", run)
    assert code == 1
    assert "✗ files      model.safetensors, tensor model.norm.weight: is not as recorded" in shown
    assert "✗ weights    tensor model.norm.weight: its values are not as recorded" in shown
    code, shown, _ = llmc("verify", run, "--json")
    verdict = json.loads(shown)
    assert (code, verdict["intact"]) == (1, False)
    assert verdict["checks"][1]["findings"][0]["tensor"] == "model.norm.weight"


def test_a_manifest_that_is_no_json_is_one_sentence(llmc, run):
    manifest = run / "artifact" / MANIFEST
    manifest.write_text(manifest.read_text()[:-3])
    code, shown, err = llmc("verify", run)
    assert (code, err) == (1, "")
    assert shown.startswith(f"✗ manifest   {MANIFEST}: is not valid JSON")
    assert shown.count("\n") == 2


def test_what_is_no_artifact_is_exit_code_2(llmc, run, tiny_model):
    code, _, err = llmc("verify", tiny_model("llama"))
    assert code == 2
    assert "is no artifact" in err
    assert llmc("verify", run / "nothing")[0] == 2


def test_a_manifest_of_the_future_is_refused(llmc, run):
    from dataclasses import replace

    from compressor.manifest import read_manifest

    replace(read_manifest(run / "artifact"), schema=3).write(run / "artifact")
    code, _, err = llmc("verify", run)
    assert code == 2
    assert "manifest schema 3; this version reads 1 and 2" in err


def test_where_nothing_is_measured_nothing_is_run(llmc, tiny_model, tmp_path):
    out = tmp_path / "unmeasured"
    words = ("-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none", "-o", out)
    assert llmc("compress", tiny_model("llama"), *words)[0] == 0
    code, shown, _ = llmc("verify", out)
    assert code == 0
    assert "not run: none was recorded, since measuring was switched off when it was made" in shown
