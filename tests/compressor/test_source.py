"""Where a model comes from: folders, pickle weights, GGUF files, the hub; and what is said when it cannot come."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file
from transformers import AutoTokenizer

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.ledger import load_ledger
from compressor.model_path import HUB_ID
from compressor.recipe import make_recipe
from compressor.shards import SINGLE_SHARD
from compressor.source import open_model


def silent(*_):
    pass


@pytest.fixture
def take(tmp_path):
    """`open_model` with a folder to import into."""

    def open_it(model, **options):
        return open_model(str(model), tmp_path / "import", progress=silent, **options)

    return open_it


@pytest.fixture
def pickled(tiny_model):
    """A factory: a model folder whose weights are pickles, in `count` shards."""

    def make(count=1, tied=True, **extra):
        root = tiny_model("llama", tied=tied)
        tensors = load_file(root / SINGLE_SHARD) | extra
        (root / SINGLE_SHARD).unlink()
        names = [f"pytorch_model-{n}.bin" for n in range(count)] if count > 1 else ["pytorch_model.bin"]
        weight_map = {}
        for number, name in enumerate(names):
            part = dict(list(tensors.items())[number::count])
            torch.save(part, root / name)
            weight_map |= dict.fromkeys(part, name)
        if count > 1:
            (root / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return root, tensors

    return make


def test_folder_is_opened_where_it_is(tiny_model, take, tmp_path):
    root = tiny_model("qwen2")
    source = take(root)
    assert source.checkpoint.root == root
    assert source.imported is None
    assert not (tmp_path / "import").exists()


def test_home_is_expanded(tiny_model, take, monkeypatch):
    root = tiny_model("llama")
    monkeypatch.setenv("HOME", str(root.parent))
    assert take("~/model").checkpoint.digest == Checkpoint.open(root).digest


def test_code_beside_the_model_is_not_run(tiny_model, take):
    root = tiny_model("llama")
    config = json.loads((root / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    (root / "config.json").write_text(json.dumps(config))
    (root / "modeling.py").write_text("raise SystemExit('ran')")
    assert take(root).checkpoint.architecture.model_type == "llama"


def test_gguf_file_is_imported(tiny_model, gguf_of, take, tmp_path):
    source = take(gguf_of(tiny_model("llama"), "Q8_0"))
    assert source.checkpoint.root == tmp_path / "import"
    assert source.imported == (
        "14 weights of GGUF Q8_0 (tiny.Q8_0.gguf) kept as its integers and scales; "
        "dequantized to float32: 1 of Q8_0: model.embed_tokens"
    )


def test_a_gguf_file_in_capitals_and_one_in_a_folder(tiny_model, gguf_of, take, tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    path = gguf_of(tiny_model("llama"), "Q8_0").rename(folder / "TINY.GGUF")
    named = take(path).checkpoint.digest
    (folder / "README.md").write_text("A model.")
    assert take(folder).checkpoint.digest == named
    (folder / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="holds 2 GGUF files") as caught:
        take(folder)
    assert "TINY.GGUF" in caught.value.hint


def test_a_gguf_file_beside_weights_is_left_alone(tiny_model, take):
    root = tiny_model("llama")
    (root / "model.gguf").write_bytes(b"not read")
    assert take(root).checkpoint.root == root


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "pytorch_model.bin", "m.gguf"])
def test_a_git_lfs_pointer_is_named(tiny_model, pickled, take, name):
    root = pickled()[0] if name.endswith("bin") else tiny_model("llama")
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
    (root / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} is a git-lfs pointer") as caught:
        take(root / name if name.endswith("gguf") else root, allow_pickle=True)
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize("name", ["nothing", "./org/name", "/no/such/folder", "a/b/c", "models/x.gguf", "org/"])
def test_what_is_none_of_these(take, name):
    with pytest.raises(InputError, match=r"is neither a folder, a \.gguf file nor a hub id"):
        take(name)


def test_file_of_another_kind(take, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file, not a model folder"):
        take(tmp_path / "model.bin")


# -- pickle weights -----------------------------------------------------------------------------------------------


def test_pickle_is_refused_unless_allowed(pickled, take, tmp_path):
    root, _ = pickled()
    with pytest.raises(InputError, match="can run code when opened") as caught:
        take(root)
    assert "--allow-pickle" in caught.value.hint
    assert not (tmp_path / "import").exists()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_allowed_pickle_is_converted(pickled, take, tmp_path, count, tied):
    root, tensors = pickled(count, tied)
    source = take(root, allow_pickle=True)
    assert source.imported.startswith("converted from pickle weights (pytorch_model")
    assert source.checkpoint.root == tmp_path / "import"
    found = {name: tensor for block in source.checkpoint.blocks() for name, tensor in block.weights.items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert AutoTokenizer.from_pretrained(source.checkpoint.root)("a")["input_ids"]
    assert take(root, allow_pickle=True).checkpoint.digest == source.checkpoint.digest


@pytest.mark.parametrize("count", [1, 3])
def test_a_copy_of_a_tied_head_among_pickles_is_left_out(pickled, take, tiny_model, count):
    table = load_file(tiny_model("llama") / SINGLE_SHARD)["model.embed_tokens.weight"]
    root, _ = pickled(count, **{"lm_head.weight": table})
    source = take(root, allow_pickle=True)
    assert source.checkpoint.architecture.tied_embeddings
    assert "lm_head.weight" not in source.checkpoint.tensors


@pytest.mark.parametrize("count", [1, 3])
def test_a_head_among_pickles_with_values_of_its_own_is_not_tied(pickled, take, count):
    head = torch.linspace(-1, 1, 288 * 64).view(288, 64)
    root, _ = pickled(count, **{"lm_head.weight": head})
    source = take(root, allow_pickle=True)
    assert torch.equal(source.checkpoint.block("head").weights["lm_head.weight"], head)
    assert "lm_head.weight holds other values" in source.imported


def test_a_compressed_archive_is_refused(pickled, take):
    root, _ = pickled()
    path = root / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="is a compressed archive"):
        take(root, allow_pickle=True)


def test_safetensors_win_over_pickles(tiny_model, take):
    root = tiny_model("llama")
    (root / "pytorch_model.bin").write_bytes(b"not read")
    assert take(root, allow_pickle=True).imported is None


class Evil:
    """An object whose unpickling runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(pickled, take, tmp_path, zipped):
    root, tensors = pickled()
    torch.save(
        tensors | {"x": Evil(tmp_path / "ran")}, root / "pytorch_model.bin", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(InputError, match="not tensors"):
        take(root, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "import").exists()


def test_old_pickles_are_read(pickled, take):
    root, tensors = pickled()
    torch.save(tensors, root / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert take(root, allow_pickle=True).checkpoint.block("head").weights.keys() == {"model.norm.weight"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "truncated"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: torch.save([1, 2], path), "not a state dict"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "no tensor model.embed_tokens"),
    ],
    ids=["cut", "empty", "list", "other model"],
)
def test_damaged_pickle(pickled, take, tmp_path, damage, message):
    root, _ = pickled()
    damage(root / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        take(root, allow_pickle=True)
    assert not (tmp_path / "import").exists()


def test_missing_pickle_shard(pickled, take):
    root, _ = pickled(2)
    (root / "pytorch_model-1.bin").unlink()
    with pytest.raises(InputError, match=r"pytorch_model-1\.bin is missing"):
        take(root, allow_pickle=True)


def test_other_pickles_are_not_weights(tiny_model, take):
    root = tiny_model("llama")
    (root / SINGLE_SHARD).rename(root / "adapter_model.bin")
    with pytest.raises(InputError, match="pickle weights"):
        take(root, allow_pickle=True)


# -- tokenizers with code -----------------------------------------------------------------------------------------


def test_tokenizer_that_needs_code_is_refused_unless_trusted(tiny_model, take):
    root = tiny_model("llama")
    config = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    take(root)  # tokenizer.json needs no code
    (root / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"runs code of its own \(tokenization_own\.OwnTokenizer\)") as caught:
        take(root)
    assert "--trust-remote-code" in caught.value.hint
    assert take(root, trust_remote_code=True).checkpoint.root == root


# -- the hub ------------------------------------------------------------------------------------------------------


asked_for = []  # repository and revision
COMMIT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


@pytest.fixture
def hub(monkeypatch):
    """Replaces the download: `hub(folder or exception)` returns the list of patterns that were asked for."""

    def serve(answer):
        asked = []
        asked_for.clear()

        def download(repo_id, allow_patterns, ignore_patterns, revision):
            asked.append(allow_patterns)
            asked_for.append((repo_id, revision))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return serve


def hub_error(kind):
    import httpx

    return kind("message", response=httpx.Response(404, request=httpx.Request("GET", "https://hub")))


def test_hub_model_is_opened_where_it_was_downloaded(tiny_model, take, hub):
    root = tiny_model("llama")
    asked = hub(root)
    assert take("org/name").checkpoint.root == root
    assert len(asked) == 2
    assert not any(".bin" in pattern for pattern in asked[0])
    assert asked[1] == ["additional_chat_templates/*.jinja"]


def test_a_revision_of_a_hub_model_and_the_commit_that_it_was(tiny_model, take, hub, tmp_path):
    commit = tmp_path / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(tiny_model("llama"), commit)
    hub(commit)
    source = take("org/name@v1.0")
    assert asked_for == [("org/name", "v1.0"), ("org/name", COMMIT)]  # files in folders are of the same commit
    assert source.revision == COMMIT
    assert f"from the Hugging Face hub, commit {COMMIT}" in source.notes
    take("org/name")
    assert asked_for[-2] == ("org/name", None)
    assert make_recipe({"model": "org/name", "revision": "v1.0", "target": "hf"}).source == "org/name@v1.0"
    with pytest.raises(InputError, match="is on this disk and has no revisions"):
        assert make_recipe({"model": str(commit), "revision": "v1.0", "target": "hf"}).source


def test_the_commit_is_in_the_ledger(tiny_model, hub, tmp_path, llmc):
    commit = tmp_path / "snapshots" / COMMIT
    shutil.copytree(tiny_model("llama"), commit)
    hub(commit)
    words = ("--pass", "rtn:group_size=32", "--measure", "none", "-o", tmp_path / "out")
    assert llmc("compress", "org/name", "--revision", "main", "-t", "hf", *words)[0] == 0
    ledger = load_ledger(tmp_path / "out")
    assert ledger.revision == COMMIT
    assert ledger.recipe["revision"] == "main"
    assert asked_for == [("org/name", "main"), ("org/name", COMMIT)]


def test_hub_pickles_are_fetched_only_when_allowed(pickled, take, hub):
    root, _ = pickled()
    asked = hub(root)
    with pytest.raises(InputError, match="org/name on the Hugging Face hub has no safetensors"):
        take("org/name")
    assert take("org/name", allow_pickle=True).imported
    assert "pytorch_model.bin" in asked[-2]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("offline"), "hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "hub cannot be reached"),
        (OSError("no route to host"), "hub cannot be reached"),
        (hub_error(errors.HfHubHTTPError), "hub cannot be reached"),
        (hub_error(errors.RepositoryNotFoundError), "no such model on the Hugging Face hub"),
        (hub_error(errors.GatedRepoError), "is gated"),
        (hub_error(errors.RevisionNotFoundError), "has no revision"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_network_failures_are_one_sentence(take, hub, error, message):
    hub(error)
    with pytest.raises(InputError, match=message) as caught:
        take("org/name")
    assert "org/name" in str(caught.value)
    assert caught.value.hint


def test_full_disk_while_downloading(take, hub):
    hub(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RunError, match="disk is full"):
        take("org/name")


@pytest.mark.parametrize(("name", "is_id"), [("meta-llama/Llama-3.2-1B", True), ("a/b_c.d", True), ("../x", False),
                                             ("a", False), ("a/b/c", False), ("a b/c", False)])  # fmt: skip
def test_hub_ids(name, is_id):
    assert bool(HUB_ID.fullmatch(name)) == is_id
