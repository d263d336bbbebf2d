import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from compressor.adapter.folder import open_adapter
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.inside import check_links, check_name, inside
from compressor.ledger import LEDGER_FILE, Ledger, SamplesRecord, StepRecord, load_ledger
from compressor.source import open_model
from targets.huggingface import HuggingFace

LEADING_OUT = (
    "../a", "a/../../b", "/etc/passwd", "..", "", ".", "a\0b", "C:\\a", "C:a", "\\a", "\\\\host\\share\\a",
    "a\\..\\..\\b", 7, None,
)  # fmt: skip


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(InputError, match=r"^the index names a file outside of its folder: "):
        inside(tmp_path, name, "the index")


@pytest.mark.parametrize("name", ["model.safetensors", "sub/model.safetensors", "..a", "a..b/c"])
def test_names_that_stay(tmp_path, name):
    assert inside(tmp_path, name, "the index") == tmp_path / name
    assert check_name(name, "the index") == name


@pytest.fixture
def sharded(tiny_model, tmp_path):
    """A model in a folder of its own with one shard beside the folder, as its index says."""
    root = tmp_path / "models" / "bad"
    shutil.copytree(tiny_model("llama"), root)
    tensors = load_file(root / "model.safetensors")
    (root / "model.safetensors").unlink()
    names = list(tensors)
    parts = {"../victim.safetensors": names[:3], "model-1.safetensors": names[3:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, root / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def test_nothing_outside_of_the_output_is_written(llmc, sharded, tmp_path):
    victim = tmp_path / "outputs" / "victim.safetensors"
    victim.parent.mkdir()
    victim.write_text("mine")
    code, _, err = llmc("compress", sharded, "-t", "hf", "--measure", "none", "-o", victim.parent / "out")
    assert code == 2
    assert "names a file outside of its folder: '../victim.safetensors'" in err
    assert victim.read_text() == "mine"
    assert [path.name for path in victim.parent.iterdir()] == ["victim.safetensors"]


def test_a_shard_in_a_folder_below_is_taken(sharded, tmp_path):
    (sharded / "sub").mkdir()
    (sharded / "../victim.safetensors").rename(sharded / "sub" / "first.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("../victim", "sub/first"))
    (tmp_path / "out").mkdir()
    HuggingFace().lower(Checkpoint.open(sharded), tmp_path / "out", lambda *_: None)
    assert Checkpoint.open(tmp_path / "out").digest == Checkpoint.open(sharded).digest


@pytest.mark.parametrize("name", ["LICENSE", "model.safetensors", "config.json", "tokenizer.json", "merges.txt"])
def test_a_link_that_leads_out_is_not_followed(llmc, tiny_model, tmp_path, name):
    root = tiny_model("llama")
    secret = tmp_path / "secret"
    if (root / name).exists():
        (root / name).rename(secret)
    else:
        secret.write_text("a key")
    (root / name).symlink_to(secret)
    code, _, err = llmc("compress", root, "-t", "hf", "--measure", "none", "-o", tmp_path / "out")
    assert code == 2
    assert f"{name} leads out of its folder, to {secret}." in err
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_the_hub_cache_links_to_its_blobs(tiny_model, tmp_path):
    cache = tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(tiny_model("llama").iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    source = open_model(str(snapshot), tmp_path / "import", progress=lambda *_: None)
    assert source.checkpoint.root == snapshot
    (tmp_path / "mine").symlink_to(snapshot)  # the folder itself may be called otherwise
    check_links(tmp_path / "mine")
    (tmp_path / "models--other" / "blobs").mkdir(parents=True)
    (tmp_path / "models--other" / "blobs" / "1").write_text("of another model")
    (snapshot / "LICENSE").symlink_to("../../../models--other/blobs/1")
    with pytest.raises(InputError, match="LICENSE leads out of its folder"):
        check_links(snapshot)


def test_links_inside_a_folder_and_in_a_circle(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("a")
    check_links(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="circle is a link that leads nowhere"):
        check_links(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has none")
def test_what_would_be_waited_for_is_refused(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        check_links(tmp_path)


def test_pickles_outside_of_the_folder(tiny_model, tmp_path):
    root = tiny_model("llama")
    (root / "model.safetensors").unlink()
    (root / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../other.bin"}}))
    with pytest.raises(InputError, match=r"names a file outside of its folder: '\.\./other\.bin'"):
        open_model(str(root), tmp_path / "import", allow_pickle=True, progress=lambda *_: None)


def test_samples_outside_of_the_run(tmp_path):
    row = StepRecord("original", samples=SamplesRecord("../../theirs.parquet", "", 1))
    Ledger("model", {}, steps=[row]).save(tmp_path)
    with pytest.raises(InputError, match=rf"{LEDGER_FILE} names a file outside of its folder"):
        load_ledger(tmp_path)


def test_an_adapter_from_elsewhere(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match=r"adapter_config\.json leads out of its folder"):
        open_adapter(str(tmp_path / "adapter"))
