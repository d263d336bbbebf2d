"""`llmc compress --dry-run`: the plan, and nothing done."""

import json


def test_dry_run_does_nothing(compress, tiny_model, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = compress(tiny_model("llama"), out, "--dry-run")
    assert code == 0
    assert "int4 g32 symmetric" in shown
    assert not out.exists()


def test_accuracy_level_is_an_option_of_the_target(llmc, tiny_model):
    words = ("compress", tiny_model("llama"), "-t", "onnx-int4", "--pass", "rtn:group_size=32", "--dry-run", "--json")
    for given, level in ((("--accuracy-level", "0"), 0), ((), 4)):
        code, shown, _ = llmc(*words, *given)
        assert (code, json.loads(shown)["recipe"]["target"]) == (0, {"onnx-int4": {"accuracy_level": level}})


def test_a_dry_run_says_what_is_not_known_yet(llmc, tiny_model):
    words = ("compress", tiny_model("llama"), "-t", "hf", "--bits", "4.75", "--dry-run")
    _, shown, _ = llmc(*words)
    assert "  int8 channel symmetric\n" in shown
    assert "is what mixed finds out" in shown
    _, shown, _ = llmc(*words, "--json")
    assert json.loads(shown)["chosen_by"] == ["mixed"]
