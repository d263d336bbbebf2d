"""The recipes of examples/recipes as they are, on less text: each has its effect, and what it makes verifies."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "recipes"
LLMC = Path(sys.executable).with_name("llmc")
SMALL = ("--samples", "32", "--length", "128", "--eval-length", "128", "--prompt", "16", "--output-tokens", "4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs(name)`: ledger and folder of a recipe, run once."""
    made = {}

    def run(name):
        if name not in made:
            out = tmp_path_factory.mktemp("recipes") / name
            adapter = ["--adapter", save_adapter(out.with_name("adapter"))] if name == "task" else []
            words = [LLMC, "compress", "--recipe", RECIPES / f"{name}.yaml", *SMALL, *adapter, "-o", out]
            done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=ROOT, check=False)
            assert done.returncode == 0, done.stderr
            made[name] = json.loads((out / "ledger.json").read_text()), out
        return made[name]

    return run


def save_adapter(out):
    """An untrained adapter that changes the model: its second factor is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(ROOT / "examples" / "demo" / "model", dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        model.save_pretrained(out)
    return out


def rows_of(ledger):
    return {row["name"].partition(":")[0]: row for row in ledger["steps"]}


def kl(row):
    return row["quality"]["kl"]["value"]


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_the_recipe_gives_a_smaller_artifact_that_verifies(runs, name):
    ledger, out = runs(name)
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    passes = [next(iter(entry)) for entry in recipe["passes"]]
    ran = list(rows_of(ledger))
    assert [row for row in ran if row in passes] == passes
    assert ledger["artifact"]["verified"]["mismatches"] == []
    assert ledger["artifact"]["verified"]["weights"] > 0
    assert (out / "run.sh").exists()
    original = ledger["steps"][0]
    assert ledger["artifact"]["size_bytes"] < 0.85 * original["size_bytes"]
    last = rows_of(ledger)[passes[-1]]["quality"]
    assert last["perplexity_increase"]["value"] < 0.15, "it is still the same model, though little text was given"


def test_edge_gets_accuracy_back_by_distilling_and_runs_in_onnxruntime(runs):
    rows = rows_of(runs("edge")[0])
    assert kl(rows["distill"]) < kl(rows["prune-width"])
    shipped = rows["onnx-int4"]
    assert shipped["runtime"].startswith("onnxruntime")
    assert shipped["bits_per_weight"] < 8


def test_throughput_is_a_narrower_model_of_eight_bit_weights_and_inputs(runs):
    _, out = runs("throughput")
    config = json.loads((out / "artifact" / "config.json").read_text())
    original = json.loads((ROOT / "examples" / "demo" / "model" / "config.json").read_text())
    assert config["intermediate_size"] < original["intermediate_size"]
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["weights"]["num_bits"] == group["input_activations"]["num_bits"] == 8


def test_task_is_distilled_towards_the_model_with_the_adapter(runs):
    rows = rows_of(runs("task")[0])
    assert kl(rows["base, without the adapter"]) > 0, "the adapter changes the model"
    assert kl(rows["lora-merge"]) < kl(rows["base, without the adapter"]), "the original is the fine-tuned model"
    assert kl(rows["distill"]) < kl(rows["prune-width"])


def test_desktop_says_how_to_serve_with_a_cache_of_eight_bits(runs):
    _, out = runs("desktop")
    assert "--cache-type-k q8_0 --cache-type-v q8_0" in (out / "run.sh").read_text()
    written = yaml.safe_load((out / "recipe.yaml").read_text())["target"]
    assert written["gguf-q4_0"]["kv_cache"] == "q8_0"
