"""`llmc compress -t A -t B`: one model for several targets, what they share done once, each artifact by itself."""

import json

import pytest
import yaml

from compressor.ledger import load_ledger

INT4 = "rtn:bits=4,group_size=32"
WIDE = {"hidden_size": 128, "head_dim": 32}  # for groups of 128, as presets have them


def ledger_of(out):
    return json.loads((out / "ledger.json").read_text())


def counted(monkeypatch, owner, name):
    """Calls of a method from now on."""
    calls, honest = [], getattr(owner, name)

    def count(*arguments, **options):
        calls.append(arguments)
        return honest(*arguments, **options)

    monkeypatch.setattr(owner, name, count)
    return calls


def test_what_targets_share_is_done_once(llmc, tiny_model, tmp_path, workload, monkeypatch):
    import compressor.evaluator
    from passes.gptq import GPTQ

    applied = counted(monkeypatch, GPTQ, "apply")
    judged = counted(monkeypatch, compressor.evaluator, "checkpoint_scores")
    out = tmp_path / "out"
    words = ("-t", "hf", "-t", "onnx-int4", "--pass", "gptq:group_size=32", "-o", out, *workload)
    code, shown, _ = llmc("compress", tiny_model("llama"), *words)
    assert code == 0
    assert (len(applied), len(judged)) == (1, 2), "one pass, and the rows of the original and of the pass"
    assert {path.name for path in out.iterdir()} == {"steps", "hf", "onnx-int4", "report.md", "report.html"}
    assert [path.name for path in (out / "steps").iterdir()] == ["01-gptq"]
    assert shown.count("bit-identical") == 2
    assert shown.count("gptq:group_size=32  ") == 2, "a line in each table, not one for each target"
    assert "→ hf, onnx-int4\n" in (out / "report.md").read_text()
    for target in ("hf", "onnx-int4"):
        assert ledger_of(out / target)["artifact"]["verified"]["mismatches"] == []
        assert llmc("verify", out / target)[0] == 0


def test_the_original_is_lowered_once_for_one_runtime(llmc, tiny_model, tmp_path, workload, monkeypatch):
    from targets.onnx.target import OnnxFp32

    lowered = counted(monkeypatch, OnnxFp32, "lower")
    out = tmp_path / "out"
    words = ("-t", "onnx-int4", "-t", "onnx-qdq-int4", "--pass", INT4, *workload, "-o", out)
    assert llmc("compress", tiny_model("llama"), *words)[0] == 0
    assert len(lowered) == 1
    for target in ("onnx-int4", "onnx-qdq-int4"):
        (row,) = [row for row in ledger_of(out / target)["steps"] if row["name"] == "onnx-fp32, original"]
        assert row["quality"] and row["size_bytes"]


def test_each_folder_is_that_of_a_run_of_its_own(llmc, tiny_model, tmp_path, workload):
    from compressor.measure import samples

    root, several = tiny_model("llama"), tmp_path / "several"
    words = ("--pass", "gptq:group_size=32", *workload)
    assert llmc("compress", root, "-t", "gguf-q4_0", "-t", "hf", *words, "-o", several)[0] == 0
    assert llmc("compress", root, "-t", "hf", *words, "-o", tmp_path / "alone")[0] == 0
    one, alone = ledger_of(several / "hf"), ledger_of(tmp_path / "alone")
    assert one["artifact"]["digest"] == alone["artifact"]["digest"]
    assert one["recipe"] == alone["recipe"]
    assert one["texts"] == alone["texts"] and one["warnings"] == alone["warnings"]
    assert [row["quality"] for row in one["steps"]] == [row["quality"] for row in alone["steps"]]
    names = {path.name for path in (several / "hf").iterdir()}
    assert names == {path.name for path in (tmp_path / "alone").iterdir()} - {"steps"}
    for row in load_ledger(several / "hf").steps:
        assert len(samples.read(several / "hf", row.samples)["loss"]) == row.samples.count
    assert llmc("gate", several / "hf", "--max-kl", "10")[0] in (0, 3)
    assert llmc("compress", "--recipe", several / "hf" / "recipe.yaml", "-o", tmp_path / "again")[0] == 0
    assert ledger_of(tmp_path / "again")["artifact"]["digest"] == one["artifact"]["digest"]


def test_presets_part_the_runs(llmc, tiny_model, adapter_of, tmp_path, text):
    """Each target takes the passes that it suggests; what comes before them is shared."""
    from peft import LoraConfig

    root, out = tiny_model("llama", **WIDE), tmp_path / "out"
    adapter = adapter_of(root, LoraConfig(r=2, target_modules=["q_proj"]))
    words = ("--adapter", adapter, "--calibration", text, "--samples", 4, "--length", 64, "--measure", "none")
    assert llmc("compress", root, "-t", "hf", "-t", "onnx-int8", *words, "-o", out)[0] == 0
    assert sorted(path.name for path in (out / "steps").iterdir()) == ["01-lora-merge", "02-gptq", "02-rtn"]
    rows = {target: [row["name"] for row in ledger_of(out / target)["steps"]] for target in ("hf", "onnx-int8")}
    assert rows["hf"][2:] == ["gptq", "hf"]
    assert rows["onnx-int8"][2:] == ["rtn:bits=8", "onnx-int8"]
    assert "calibration" in ledger_of(out / "hf")["texts"]
    assert ledger_of(out / "onnx-int8")["texts"] == {}, "its passes did not calibrate"


def test_bits_replace_those_of_every_preset(llmc, tiny_model, workload):
    root = tiny_model("llama", **WIDE)
    words = ("compress", root, "-t", "hf", "-t", "onnx-int8", "--bits", "8", "--dry-run", *workload)
    code, shown, _ = llmc(*words, "--json")
    assert code == 0
    plans = json.loads(shown)["targets"]
    assert [plan["recipe"]["passes"][0].keys() for plan in plans.values()] == [{"gptq"}, {"rtn"}]
    assert {scheme[:4] for plan in plans.values() for scheme in plan["linears"]} == {"int8", "left"}
    _, shown, _ = llmc(*words)
    assert "Steps, each made once: 01-gptq, 01-rtn" in shown


def test_options_go_to_the_targets_that_have_them(llmc, tiny_model):
    words = ("compress", tiny_model("llama"), "--pass", "rtn:group_size=32", "--accuracy-level", "0", "--dry-run")
    code, shown, _ = llmc(*words, "-t", "onnx-int4", "-t", "hf", "--json")
    assert code == 0
    plans = json.loads(shown)["targets"]
    assert plans["onnx-int4"]["recipe"]["target"]["onnx-int4"]["accuracy_level"] == 0
    assert "accuracy_level" not in plans["hf"]["recipe"]["target"]["hf"]
    code, _, err = llmc(*words, "-t", "gguf-q4_0", "-t", "hf")
    assert code == 2
    assert "has no option 'accuracy_level'" in err


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["hf", "trt-int4"], "trt-int4 cannot take this"),
        (["hf", "onnx-int8"], "onnx-int8 cannot take this"),
        (["hf", "hf"], "the target hf is given twice"),
        (["onnx-int4:accuracy_level=0", "onnx-int4"], "the target onnx-int4 is given twice"),
        (["hf", "onxx-int4"], "did you mean 'onnx-int4'?"),
    ],
)
def test_one_target_that_cannot_stops_all_before_any_work(llmc, tiny_model, tmp_path, targets, message):
    words = [word for target in targets for word in ("-t", target)]
    code, _, err = llmc("compress", tiny_model("llama"), *words, "--pass", INT4, "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"target": "hf", "targets": ["hf"]}, "r.yaml line 3: the recipe has both 'target' and 'targets'"),
        ({"targets": "hf"}, "r.yaml line 2: targets = 'hf' is not a list of targets"),
        ({"targets": []}, "is not a list of targets"),
        ({}, "the recipe needs 'target'"),
    ],
)
def test_recipes_that_do_not_say_where_to(llmc, tmp_path, lines, message):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"model": "m"}) + yaml.safe_dump(lines, sort_keys=False) if lines else "model: m")
    code, _, err = llmc("compress", "--recipe", recipe)
    assert code == 2
    assert message in err


def test_a_list_in_a_recipe_and_its_replacement(llmc, tiny_model, tmp_path):
    recipe = tmp_path / "r.yaml"
    values = {"model": str(tiny_model("llama")), "passes": [INT4], "measure": {"effort": "none"}}
    recipe.write_text(yaml.safe_dump(values | {"targets": ["hf", {"onnx-int4": {"accuracy_level": 0}}]}))
    code, shown, _ = llmc("compress", "--recipe", recipe, "-o", tmp_path / "out", "--json")
    assert code == 0
    found = json.loads(shown)["targets"]
    assert list(found) == ["hf", "onnx-int4"]
    assert found["onnx-int4"]["recipe"]["target"]["onnx-int4"]["accuracy_level"] == 0
    _, shown, _ = llmc("compress", "--recipe", recipe, "-t", "gguf-q4_0", "--dry-run", "--json")
    assert list(json.loads(shown)["recipe"]["target"]) == ["gguf-q4_0"]


def test_resume_makes_what_is_missing_and_nothing_else(llmc, tiny_model, tmp_path, workload, monkeypatch):
    from passes.rtn import RTN
    from targets.huggingface import HuggingFace

    root, out = tiny_model("llama"), tmp_path / "out"
    words = ("--pass", INT4, *workload, "-o", out)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(HuggingFace, "lower", interrupt)
    code, _, err = llmc("compress", root, "-t", "gguf-q4_0", "-t", "hf", *words)
    assert (code, "--resume" in err) == (4, True)
    assert (out / "gguf-q4_0" / "artifact").exists() and not (out / "hf" / "artifact").exists()
    monkeypatch.undo()
    before = ledger_of(out / "gguf-q4_0")
    applied = counted(monkeypatch, RTN, "apply")
    code, _, err = llmc("compress", root, "-t", "gguf-q4_0", "-t", "hf", "-t", "onnx-int4", *words, "--resume")
    assert code == 0, err
    assert applied == []
    after = ledger_of(out / "gguf-q4_0")
    assert (after["steps"], after["artifact"]) == (before["steps"], before["artifact"])
    assert {path.name for path in out.iterdir()} == {
        "steps",
        "gguf-q4_0",
        "hf",
        "onnx-int4",
        "report.md",
        "report.html",
    }


def test_an_error_says_which_target_it_came_with(llmc, tiny_model, tmp_path, monkeypatch):
    from compressor.errors import RunError
    from targets.huggingface import HuggingFace

    def broken(*_, **__):
        raise RunError("The disk is worn out.", "Take another.")

    monkeypatch.setattr(HuggingFace, "lower", broken)
    words = ("compress", tiny_model("llama"), "--pass", INT4, "--measure", "none")
    code, _, err = llmc(*words, "-t", "gguf-q4_0", "-t", "hf", "-o", tmp_path / "several")
    assert (code, err.splitlines()[-2:]) == (4, ["Error: hf: The disk is worn out.", "Hint:  Take another."])
    assert (tmp_path / "several" / "gguf-q4_0" / "artifact").is_dir()
    _, _, err = llmc(*words, "-t", "hf", "-o", tmp_path / "one")
    assert "Error: The disk is worn out." in err


def test_one_target_that_breaks_stops_no_other(llmc, tiny_model, tmp_path, monkeypatch):
    from targets.huggingface import HuggingFace

    def broken(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(HuggingFace, "lower", broken)
    out = tmp_path / "out"
    words = ("compress", tiny_model("llama"), "-t", "hf", "-t", "gguf-q4_0", "--pass", INT4, "--measure", "none")
    code, shown, err = llmc(*words, "-o", out, "--json")
    assert code == 4
    assert "Error: The run for hf broke: RuntimeError: out of luck" in err
    found = json.loads(shown)["targets"]
    assert found["hf"] == {"error": "out of luck"}
    assert found["gguf-q4_0"]["artifact"]["verified"]["mismatches"] == []
    assert llmc("verify", out / "gguf-q4_0", "--allow-unchecked")[0] == 0
    assert (out / "gguf-q4_0" / "report.md").is_file() and (out / "report.md").is_file()
    monkeypatch.undo()
    assert llmc(*words, "-o", out, "--resume")[0] == 0
    assert llmc("verify", out / "hf")[0] == 0


def test_a_pass_that_breaks_is_tried_once(llmc, tiny_model, tmp_path, monkeypatch):
    from passes.rtn import RTN

    def broken(*_, **__):
        tried.append(1)
        raise RuntimeError("out of luck")

    tried = []
    monkeypatch.setattr(RTN, "apply", broken)
    words = ("compress", tiny_model("llama"), "-t", "hf", "-t", "gguf-q4_0", "--pass", INT4, "--measure", "none")
    code, _, err = llmc(*words, "-o", tmp_path / "out")
    assert (code, tried) == (4, [1])
    assert [line for line in err.splitlines() if "broke" in line] == [
        f"Error: The run for {target} broke: RuntimeError: out of luck" for target in ("hf", "gguf-q4_0")
    ]


def test_runs_for_one_target_and_for_several_do_not_mix(llmc, tiny_model, tmp_path):
    root, one, several = tiny_model("llama"), tmp_path / "one", tmp_path / "several"
    words = ("compress", root, "--pass", INT4, "--measure", "none", "--resume")
    assert llmc(*words, "-t", "hf", "-o", one)[0] == 0
    assert llmc(*words, "-t", "hf", "-t", "gguf-q4_0", "-o", several)[0] == 0
    code, _, err = llmc(*words, "-t", "hf", "-t", "gguf-q4_0", "-o", one)
    assert (code, "holds a run for one target" in err) == (2, True)
    code, _, err = llmc(*words, "-t", "hf", "-o", several)
    assert (code, "holds runs for several targets: gguf-q4_0, hf" in err) == (2, True)


def test_the_folder_of_several_runs_is_reported_whole_and_judged_in_parts(llmc, tiny_model, tmp_path):
    out = tmp_path / "out"
    words = ("--pass", INT4, "--measure", "none", "-o", out)
    assert llmc("compress", tiny_model("llama"), "-t", "gguf-q4_0", "-t", "hf", *words)[0] == 0
    assert llmc("report", out, "--markdown")[1] == (out / "report.md").read_text()
    found = json.loads(llmc("report", out, "--json")[1])
    assert found == {"targets": {name: ledger_of(out / name) for name in ("gguf-q4_0", "hf")}}
    for words in (("verify", out), ("gate", out, "--max-kl", "1"), ("compare", "--runtimes", out)):
        code, _, err = llmc(*words)
        assert code == 2
        assert f"Give one of the runs in it: {out / 'gguf-q4_0'}, {out / 'hf'}." in err
    assert json.loads(llmc("inspect", out, "--json")[1])["targets"] == "gguf-q4_0, hf"


def test_the_gate_of_a_recipe_judges_every_target(llmc, tiny_model, tmp_path, text):
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    measure = {"texts": str(text), "length": 64, "latency": {"prompt": 8, "output": 4}}
    values = {"model": str(tiny_model("llama")), "targets": ["onnx-fp32", "hf"], "passes": [], "measure": measure}
    recipe.write_text(yaml.safe_dump(values | {"gate": {"max_kl": 1.0}}))
    code, shown, _ = llmc("compress", "--recipe", recipe, "-o", out, "--json")
    verdicts = {name: ledger["gate"]["exit_code"] for name, ledger in json.loads(shown)["targets"].items()}
    assert code == max(verdicts.values())
    assert verdicts.keys() == {"onnx-fp32", "hf"}
    assert (out / "hf" / "gate.json").is_file()
