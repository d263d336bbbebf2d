import json
import shutil

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file

from compressor.adapter import is_adapter, open_adapter
from compressor.adapter.keys import Key, parse_key
from compressor.errors import InputError
from compressor.shards import SINGLE_SHARD

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        (f"base_model.model.{Q}.lora_A.weight", Key(Q, "lora_A", None)),
        (f"{Q}.lora_B.default.weight", Key(Q, "lora_B", "default")),
        (f"base_model.model.{Q}.lora_B.bias", Key(Q, "lora_B.bias", None)),
        (f"base_model.model.{Q}.lora_magnitude_vector", Key(Q, "lora_magnitude_vector", None)),
        (f"{Q}.lora_magnitude_vector.my-lora.weight", Key(Q, "lora_magnitude_vector", "my-lora")),
        ("base_model.model.model.embed_tokens.lora_embedding_A", Key("model.embed_tokens", "lora_embedding_A", None)),
        ("model.embed_tokens.lora_embedding_B.default", Key("model.embed_tokens", "lora_embedding_B", "default")),
        ("model.embed_tokens.base_layer.weight", Key("model.embed_tokens", "weight", None)),
        (
            "model.embed_tokens.token_adapter.trainable_tokens_delta",
            Key("model.embed_tokens", "trainable_tokens_delta", None),
        ),
        ("base_model.model.lm_head.modules_to_save.default.weight", Key("lm_head", "weight", "default")),
        ("base_model.model.lm_head.modules_to_save.weight", Key("lm_head", "weight", None)),
        ("base_model.model.lm_head.original_module.weight", Key("lm_head", "original_module", None)),
        ("model.embed_tokens.token_adapter.base_layer.weight", Key("model.embed_tokens", "weight", None)),
        ("base_model.model.lm_head.weight", Key("lm_head", "weight", None)),
        (f"base_model.model.{Q}.base_layer.bias", Key(Q, "bias", None)),
        (f"base_model.model.{Q}.hada_w1_a", Key(Q, "hada_w1_a", None)),
        (f"base_model.model.{Q}.lokr_w2_b", Key(Q, "lokr_w2_b", None)),
        (f"base_model.model.{Q}.vera_lambda_b", None),
    ],
)
def test_names_of_tensors(key, parsed):
    assert parse_key(key) == parsed


@pytest.mark.parametrize("rename", [lambda k: k.removeprefix("base_model.model."), lambda k: k.replace("A.", "A.x.")])
def test_other_spellings_of_keys_are_the_same_adapter(tiny_model, adapter_of, rename):
    folder = adapter_of(tiny_model("llama"), LORA)
    before = open_adapter(str(folder)).modules.keys()
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    assert open_adapter(str(folder)).modules.keys() == before


def test_several_adapters_in_one_file_are_refused(tiny_model, adapter_of):
    folder = adapter_of(tiny_model("llama"), LORA)
    tensors = load_file(folder / "adapter_model.safetensors")
    named = {key.replace("lora_A", f"lora_A.{n}").replace("lora_B", f"lora_B.{n}"): tensor.clone()
             for key, tensor in tensors.items() for n in "ab"}  # fmt: skip
    save_file(named, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="several adapters in one file: a, b"):
        _ = open_adapter(str(folder)).modules


def test_a_pickle_holds_the_same(tiny_model, adapter_of):
    folder = adapter_of(tiny_model("llama"), LORA)
    safe = open_adapter(str(folder))
    expected, digest = safe.read(safe.tensors), safe.digest
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    pickled = open_adapter(str(folder))
    assert pickled.modules == safe.modules and pickled.digest != digest
    read = pickled.read(pickled.tensors)
    assert all(torch.equal(read[key], expected[key]) for key in expected)
    torch.save({key: tensor * float("nan") for key, tensor in read.items()}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="holds NaN"):
        open_adapter(str(folder)).check_finite()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"peft_type": "IA3"}, "is a IA3; LoRA, DoRA, LoHa and LoKr are merged"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "trained with layer_replication"),
        ({"use_qalora": True}, "trained with use_qalora"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed its base's weights too"),
        ({"init_lora_weights": "loftq"}, "changed its base's weights too"),
    ],
)
def test_what_is_not_merged_is_named(tiny_model, adapter_of, changed, says):
    folder = adapter_of(tiny_model("llama"), LORA)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=says):
        open_adapter(str(folder))


def test_an_adapter_of_another_method_as_peft_saves_it(tiny_model, adapter_of):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(InputError, match="is a IA3"):
        open_adapter(str(adapter_of(tiny_model("llama"), config)))


def test_tensors_of_nothing_known_are_named(tiny_model, adapter_of):
    folder = adapter_of(tiny_model("llama"), LORA)
    tensors = load_file(folder / "adapter_model.safetensors") | {"base_model.model.prompt": torch.zeros(2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"holds base_model\.model\.prompt, which is no part"):
        _ = open_adapter(str(folder)).modules


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "it has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "names no peft_type"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 9), "truncated"),
    ],
)
def test_damaged_folders(tiny_model, adapter_of, spoil, says):
    folder = adapter_of(tiny_model("llama"), LORA)
    spoil(folder)
    with pytest.raises(InputError, match=says):
        open_adapter(str(folder))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Replaces the download: `hub(repository)` copies what the patterns choose, as the hub's own library chooses."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    def serve(repository):
        names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]

        def download(repo_id, allow_patterns, ignore_patterns, revision):
            chosen = filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
            for name in chosen:
                target = tmp_path / "cache" / "snapshots" / "0a1b" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(repository / name, target)
            return str(tmp_path / "cache" / "snapshots" / "0a1b")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return tmp_path / "cache" / "snapshots" / "0a1b"

    return serve


def test_an_adapter_in_a_folder_of_a_hub_repository(tiny_model, adapter_of, hub, tmp_path):
    repository = tmp_path / "repository"
    lora = shutil.copytree(adapter_of(tiny_model("llama"), LORA), repository / "lora")
    (lora / "optimizer.pt").write_bytes(b"large")
    (repository / "README.md").write_text("mine")
    cache = hub(repository)
    assert open_adapter("org/name").root == cache / "lora"
    names = sorted(path.name for path in (cache / "lora").iterdir())
    assert names == sorted({path.name for path in lora.iterdir()} - {"optimizer.pt"})
    shutil.copytree(lora, repository / "lora-2")
    hub(repository)
    with pytest.raises(InputError, match="holds 2 adapters: lora, lora-2") as caught:
        open_adapter("org/name@main")
    assert "`hf download org/name --include 'FOLDER/*'" in caught.value.hint
    assert not (cache / "lora-2" / "adapter_model.safetensors").exists()


def test_named_chat_templates_of_an_adapter_on_the_hub(tiny_model, adapter_of, hub, tmp_path):
    repository = shutil.copytree(adapter_of(tiny_model("llama"), LORA), tmp_path / "repository")
    (repository / "additional_chat_templates").mkdir()
    (repository / "additional_chat_templates" / "tools.jinja").write_text("tools")
    cache = hub(repository)
    assert open_adapter("org/name").root == cache
    assert (cache / "additional_chat_templates" / "tools.jinja").read_text() == "tools"


def test_what_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="neither the folder of an adapter nor a hub id"):
        open_adapter(str(tmp_path / "no" / "where"))


def test_ranks_and_scalings_follow_the_patterns(tiny_model, adapter_of):
    config = LoHaConfig(r=4, alpha=8, target_modules=["q_proj", "k_proj"], rank_pattern={"k_proj": 2})
    adapter = open_adapter(str(adapter_of(tiny_model("llama"), config)))
    assert (adapter.kind, adapter.ranks) == ("LoHa", [2, 4])
    assert adapter.scaling(Q) == 2
    assert adapter.scaling("model.layers.0.self_attn.k_proj") == 4


def test_a_model_folder_is_no_adapter(tiny_model, adapter_of):
    root = tiny_model("llama")
    assert not is_adapter(root) and (root / SINGLE_SHARD).is_file()
    assert is_adapter(adapter_of(root, LORA))


def test_a_pattern_that_takes_for_ever_is_refused(tiny_model, adapter_of):
    folder = adapter_of(tiny_model("llama"), LORA)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank_pattern": {"(?R)": 2}}))
    with pytest.raises(InputError, match=r"adapter_config\.json, rank_pattern, holds .* takes too long"):
        open_adapter(str(folder)).rank(Q)


def test_the_only_adapter_inside_a_folder_is_meant(tiny_model, adapter_of, tmp_path):
    folder = adapter_of(tiny_model("llama"), LORA, name="trained/default")
    adapter = open_adapter(str(tmp_path / "trained"))
    assert adapter.root == folder and adapter.source == str(tmp_path / "trained")
    assert is_adapter(tmp_path / "trained")
    folder.with_name("second").mkdir()
    (folder.with_name("second") / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with pytest.raises(InputError, match="holds 2 adapters: default, second"):
        open_adapter(str(tmp_path / "trained"))


def test_empty_tensors_are_put_down_to_how_they_were_saved(tiny_model, adapter_of):
    folder = adapter_of(tiny_model("llama"), LORA)
    tensors = {key: torch.zeros(0) for key in load_file(folder / "adapter_model.safetensors")}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"was saved without its weights: \S+ is empty") as raised:
        _ = open_adapter(str(folder)).modules
    assert "ZeRO-3" in raised.value.hint
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="no tensor that changes a model"):
        _ = open_adapter(str(folder)).modules


def test_a_weight_that_is_no_number_is_told_as_one(tmp_path):
    with pytest.raises(InputError, match=r"The weight .half. of the adapter .* is no number") as error:
        open_adapter(f"{tmp_path}:half")
    assert error.value.hint == f"{tmp_path}:0.5, for example."
