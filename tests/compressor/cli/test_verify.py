"""`llmc verify`: what it says, and its exit code."""

import json
import shutil

import pytest

from compressor.target import MANIFEST

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def made():
    """The run that the tests copy."""
    return []


@pytest.fixture
def run(llmc, tiny_model, tmp_path, tmp_path_factory, made):
    """The folder of a finished run, for the test to change."""
    if not made:
        made.append(tmp_path_factory.mktemp("run") / "out")
        words = ("-t", "hf", "--pass", "rtn:group_size=32", "--prompt", 8, "--output-tokens", 4, "-o", made[0])
        assert llmc("compress", tiny_model("llama"), *words)[0] == 0
    return shutil.copytree(made[0], tmp_path / "out")


def flip_byte(shard, tensor):
    content = bytearray(shard.read_bytes())
    base = 8 + int.from_bytes(content[:8], "little")
    content[base + json.loads(content[8:base])[tensor]["data_offsets"][0]] ^= 1
    shard.write_bytes(content)


def test_a_whole_artifact_is_exit_code_0(llmc, run):
    code, shown, _ = llmc("verify", run / "artifact")
    assert code == 0
    assert "20 weights read back by compressed-tensors" in shown
    assert "16 tokens as recorded" in shown
    assert shown.count("✓") == 6
    code, shown, _ = llmc("verify", run, "--json")
    verdict = json.loads(shown)
    assert (code, verdict["intact"], verdict["target"]) == (0, True, "hf")
    assert [check["name"] for check in verdict["checks"]] == [
        "manifest",
        "files",
        "structure",
        "tokenizer",
        "weights",
        "generation",
    ]


def test_damage_is_exit_code_1_and_says_where(llmc, run):
    flip_byte(run / "artifact" / "model.safetensors", NORM)
    code, shown, _ = llmc("verify", run)
    assert code == 1
    assert f"✗ files      model.safetensors, tensor {NORM}: is not as recorded" in shown
    assert f"✗ weights    tensor {NORM}: its values are not as recorded" in shown
    code, shown, _ = llmc("verify", run, "--json")
    verdict = json.loads(shown)
    assert (code, verdict["intact"]) == (1, False)
    assert verdict["checks"][1]["findings"][0]["tensor"] == NORM


def test_a_manifest_that_is_no_json_is_one_sentence(llmc, run):
    manifest = run / "artifact" / MANIFEST
    manifest.write_text(manifest.read_text()[:-3])
    code, shown, _ = llmc("verify", run)
    assert code == 1
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


def test_what_could_not_be_checked_is_exit_code_5(llmc, run, monkeypatch):
    from targets.huggingface import HuggingFace

    monkeypatch.setattr(HuggingFace, "why_not_run", lambda self: "transformers is elsewhere")
    code, shown, _ = llmc("verify", run)
    assert code == 5
    assert "· generation not run: transformers is elsewhere" in shown
    assert shown.endswith("Nothing wrong was found, but not everything was checked: not generation.\n")
    assert llmc("verify", run, "--allow-unchecked")[0] == 0
    code, shown, _ = llmc("verify", run, "--json")
    assert (code, json.loads(shown)["intact"], json.loads(shown)["unchecked"]) == (5, True, ["generation"])
    flip_byte(run / "artifact" / "model.safetensors", NORM)
    assert llmc("verify", run, "--allow-unchecked")[0] == 1


def test_of_an_unknown_target_the_files_alone_are_checked(llmc, run):
    from dataclasses import replace

    from compressor.manifest import read_manifest

    replace(read_manifest(run / "artifact"), target="abacus").write(run / "artifact")
    code, shown, _ = llmc("verify", run)
    assert code == 5
    assert shown.endswith("not everything was checked: not structure, tokenizer, weights and generation.\n")


def test_without_digests_of_weights_they_are_not_checked(llmc, run):
    from dataclasses import replace

    from compressor.manifest import read_manifest

    replace(read_manifest(run / "artifact"), weights=None).write(run / "artifact")
    code, shown, _ = llmc("verify", run)
    assert code == 5
    assert shown.endswith("not everything was checked: not weights.\n")
