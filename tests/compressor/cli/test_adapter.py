"""`--adapter`: what a LoRA fine-tune goes through, and how the ledger tells what is compared with what."""

import json

import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
SHORT = ["--eval-length", 64, "--prompt", 8, "--output-tokens", 4]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"The fox sees the hen near mill number {n}, and the sun is up." for n in range(40)))
    return path


def test_rows_are_compared_with_the_fine_tuned_model(llmc, tiny_model, adapter_of, tmp_path, text):
    root, out = tiny_model("llama"), tmp_path / "out"
    adapter = adapter_of(root, LORA)
    words = ["compress", root, "--adapter", adapter, "-t", "hf", "--pass", "rtn:group_size=32", "-o", out]
    code, _, _ = llmc(*words, "--eval", text, *SHORT)
    assert code == 0
    ledger = json.loads((out / "ledger.json").read_text())
    rows = {row["name"].partition(":")[0]: row for row in ledger["steps"]}
    assert list(rows) == ["original", "base, without the adapter", "lora-merge", "rtn", "hf"]
    kl = {name: row["quality"]["kl"]["value"] for name, row in rows.items() if row["quality"]}
    assert abs(kl["original"]) < 1e-6 and abs(kl["lora-merge"]) < 1e-6, "a float32 checkpoint does not round"
    assert kl["base, without the adapter"] > 2 * kl["rtn"] > 0
    assert "Everything else is compared with this, not with the base" in rows["original"]["notes"][0]
    assert "is a LoRA of rank 4" in rows["lora-merge"]["notes"][0]
    assert "lora-merge" in (out / "report.md").read_text()
    assert (out / "steps" / "01-lora-merge").is_dir()


def test_it_runs_again_and_goes_on(llmc, tiny_model, adapter_of, tmp_path):
    root, first, second = tiny_model("llama"), tmp_path / "first", tmp_path / "second"
    adapters = [adapter_of(root, LORA, "a"), adapter_of(root, LORA, "b", seed=1)]
    words = ["-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none"]
    given = ["--adapter", adapters[0], "--adapter", f"{adapters[1]}:-0.5"]
    assert llmc("compress", root, *given, *words, "-o", first)[0] == 0
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    assert recipe["passes"][0]["lora-merge"]["weights"] == [1.0, -0.5]
    assert llmc("compress", "--recipe", first / "recipe.yaml", "-o", second)[0] == 0
    artifacts = [load_file(out / "artifact" / "model.safetensors") for out in (first, second)]
    assert all(torch.equal(tensor, artifacts[1][name]) for name, tensor in artifacts[0].items())
    assert llmc("compress", root, *given, *words, "-o", first, "--resume")[0] == 0
    code, _, error = llmc("compress", root, "--adapter", adapters[1], *words, "-o", first, "--resume")
    assert code == 2 and "01-lora-merge was made from another input" in error


@pytest.mark.parametrize(
    "written", ["./lora", ["./lora"], {"./lora": 1.0}, [{"./lora": 1}]], ids=["name", "list", "mapping", "both"]
)
def test_ways_to_write_it_in_a_recipe(written):
    from compressor.recipe import Recipe

    recipe = Recipe(model="m", target="hf", adapter=written, passes=["rtn"])
    assert [one.spelled() for one in recipe.build_passes()] == ["lora-merge:adapter=./lora", "rtn"]


def test_weights_in_a_recipe():
    from compressor.recipe import Recipe

    recipe = Recipe(model="m", target="hf", adapter=["./a", {"./b": 0.5}], passes=[])
    assert recipe.build_passes()[0].spelled() == "lora-merge:adapter=./a+./b,weights=1.0+0.5"


def test_the_same_adapter_twice(llmc, tiny_model, tmp_path):
    words = ["--adapter", "x", "--adapter", "x:0.5", "-t", "hf", "--dry-run"]
    code, _, error = llmc("compress", tiny_model("llama"), *words)
    assert code == 2 and "given twice" in error


def test_a_merge_comes_first(llmc, tiny_model, adapter_of):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    late = ["--pass", "rotate", "--pass", f"lora-merge:adapter={adapter}"]
    code, _, error = llmc("compress", root, "-t", "hf", *late, "--dry-run")
    assert code == 2 and "lora-merge comes first" in error
    code, _, error = llmc("compress", root, "--adapter", adapter, "-t", "hf", *late[2:], "--dry-run")
    assert code == 2 and "lora-merge comes first" in error


def test_a_pickle_needs_leave(llmc, tiny_model, adapter_of):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    words = ["compress", root, "--adapter", adapter, "-t", "hf", "--pass", "rtn:group_size=32", "--dry-run"]
    code, _, error = llmc(*words)
    assert code == 2 and "adapter_model.bin is a pickle" in error
    assert llmc(*words, "--allow-pickle")[0] == 0


def test_an_adapter_in_the_place_of_the_model(llmc, tiny_model, adapter_of):
    adapter = adapter_of(tiny_model("llama"), LORA)
    code, _, error = llmc("compress", adapter, "-t", "hf", "--dry-run")
    assert code == 2 and "is an adapter, not a model" in error and f"--adapter {adapter}" in error.replace("\n", " ")


def test_inspect_tells_what_an_adapter_is(llmc, tiny_model, adapter_of):
    config = LoraConfig(
        r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "up_proj"], modules_to_save=["norm"]
    )
    code, shown, _ = llmc("inspect", adapter_of(tiny_model("llama"), config), "--json")
    facts = json.loads(shown)
    assert code == 0
    assert facts["kind"] == "DoRA adapter" and facts["rank"] == "4" and facts["scaling"] == "2"
    assert facts["changes"] == {"q_proj": 2, "up_proj": 2} and facts["trained whole"]["norm"] == 1
    assert facts["base"].endswith("model")


def test_a_quantized_base_is_refused_unless_it_is_dequantized(llmc, tiny_model, adapter_of, tmp_path):
    root, out = tiny_model("llama"), tmp_path / "out"
    rounding = ["-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none"]
    assert llmc("compress", root, *rounding, "-o", out)[0] == 0
    words = ["compress", out / "artifact", "--adapter", adapter_of(root, LORA), *rounding, "--dry-run"]
    code, _, error = llmc(*words)
    assert code == 2 and "merged into float weights" in error and "--requantize" in error
    assert llmc(*words, "--requantize")[0] == 0


def test_merging_alone_asks_for_no_calibration(llmc, tiny_model, adapter_of, tmp_path, text):
    root, out = tiny_model("llama"), tmp_path / "out"
    adapter = adapter_of(root, LORA)
    words = ["compress", root, "--adapter", adapter, "-t", "hf"]
    assert llmc(*words, "-o", out, "--eval", text, *SHORT)[0] == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert [row["name"].partition(":")[0] for row in ledger["steps"]][2:] == ["lora-merge", "hf"]
    assert any("The adapter was merged and nothing else was done" in said for said in ledger["warnings"])
    assert list(yaml.safe_load((out / "recipe.yaml").read_text())["passes"][0]) == ["lora-merge"]
    merged, artifact = (load_file(out / name / "model.safetensors") for name in ("steps/01-lora-merge", "artifact"))
    assert all(torch.equal(tensor, artifact[name]) for name, tensor in merged.items())


@pytest.mark.parametrize(
    ("target", "more", "alone"),
    [
        ("hf", {}, True),
        ("hf", {"adapter": []}, False),
        ("hf", {"passes": ["gptq"]}, False),
        ("hf", {"calibration": {"texts": "x.txt"}}, False),
        ("vllm-int4", {}, False),
        ("onnx-int4", {}, False),
        ("onnx-fp32", {}, False),
    ],
)
def test_only_a_target_of_floats_is_left_with_the_merge_alone(tiny_models, target, more, alone):
    from compressor.checkpoint import Checkpoint
    from compressor.recipe import Recipe

    recipe = Recipe(**{"model": "m", "target": target, "adapter": "./lora"} | more)
    assert recipe.merges_alone == alone
    preset = recipe.for_model(Checkpoint.open(tiny_models("llama")).architecture, {}).passes
    assert (preset == []) == alone


def test_a_dry_run_says_that_it_only_merges(llmc, tiny_model, adapter_of):
    root = tiny_model("llama")
    code, shown, _ = llmc("compress", root, "--adapter", adapter_of(root, LORA), "-t", "hf", "--dry-run")
    assert code == 0 and "nothing else was done" in shown


def test_an_adapter_beside_the_weights_is_decided_about(llmc, tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    for file in adapter_of(root, LORA).glob("adapter*"):
        (root / file.name).write_bytes(file.read_bytes())
    assert "transformers applies the adapter" in json.loads(llmc("inspect", root, "--json")[1])["adapter"]
    words = ["compress", root, "-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none"]
    code, _, error = llmc(*words, "--dry-run")
    said = " ".join(error.split())
    assert code == 2 and "transformers applies" in said and "--no-adapter to leave it out" in said
    assert f"--adapter {root}" in said.replace("\n", "")
    assert llmc(*words, "--adapter", root, "--no-adapter", "--dry-run")[0] == 2
    assert "lora-merge" in llmc(*words, "--adapter", root, "--dry-run")[1]
    assert llmc(*words, "--no-adapter", "-o", tmp_path / "out")[0] == 0
    assert llmc("compress", "--recipe", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again")[0] == 0


def test_added_tokens_go_all_the_way(llmc, tiny_model, tmp_path, text):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root, adapter, out = tiny_model("llama", vocab_size=260), tmp_path / "lora", tmp_path / "out"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(root), AutoTokenizer.from_pretrained(root)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|user|>", "<|mill|>"]})
    model.resize_token_embeddings(288, mean_resizing=False)
    get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    ).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    text.write_text(text.read_text().replace("mill", "<|mill|>"))
    words = ["compress", root, "--adapter", adapter, "-t", "hf", "--eval", text, *SHORT, "-o", out]
    code, _, error = llmc(*words, "--tokenizer", "adapter")
    assert code == 0, error
    ledger = json.loads((out / "ledger.json").read_text())
    assert [row["name"].partition(":")[0] for row in ledger["steps"]] == ["original", "lora-merge", "hf"]
    assert any("the base alone is not measured" in note for note in ledger["steps"][0]["notes"])
    assert AutoTokenizer.from_pretrained(out / "artifact")("<|mill|>")["input_ids"] == [261]
    assert AutoModelForCausalLM.from_pretrained(out / "artifact").config.vocab_size == 288
    options = yaml.safe_load((out / "recipe.yaml").read_text())["passes"][0]["lora-merge"]
    assert options["tokenizer"] == "adapter"


def test_whose_tokenizer_is_a_question_of_adapters(llmc, tiny_model):
    code, _, error = llmc("compress", tiny_model("llama"), "-t", "hf", "--tokenizer", "base", "--dry-run")
    assert code == 2 and "there is no adapter" in error
