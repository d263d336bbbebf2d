"""`llmc bisect`: a damaged layer is found, and what cannot be blamed is refused."""

import json

import pytest
from safetensors.torch import load_file, save_file

from compressor.ledger import load_ledger

LAYERS = 5
INT8 = "rtn:bits=8,group_size=32"


@pytest.fixture
def damaged(tiny_model):
    """A model that computes the same as ever, with layers in which integers have nothing left for most weights: in each
    group of 32 there is one a thousand times as large, of a channel that is a thousand times as small.
    """

    def make(*layers):
        root = tiny_model("llama", num_hidden_layers=LAYERS)
        weights = load_file(root / "model.safetensors")
        for layer in layers:
            weights[f"model.layers.{layer}.mlp.down_proj.weight"][:, ::32] *= 1000.0
            weights[f"model.layers.{layer}.mlp.up_proj.weight"][::32] /= 1000.0
        save_file(weights, root / "model.safetensors", {"format": "pt"})
        return root

    return make


@pytest.fixture
def run(llmc, workload, tmp_path, damaged):
    """The folder of a run of a model with such layers."""

    def make(*layers, passes=(INT8,), target="hf", words=()):
        out = tmp_path / "out"
        named = [word for one in passes for word in ("--pass", one)]
        code, _, said = llmc("compress", damaged(*layers), "-t", target, *named, "-o", out, *workload, *words)
        assert code == 0, said
        return out

    return make


def bisected(llmc, *words):
    code, shown, said = llmc("bisect", *words, "--json")
    assert code == 0, said
    return json.loads(shown)


def kl(out, name=INT8):
    return next(row for row in load_ledger(out).steps if row.name == name).quality.kl.value


def test_damaged_layers_are_found_and_skipping_them_is_what_mends_it(llmc, run, damaged, workload, tmp_path):
    layers = (0, 2)
    out = run(*layers)
    found = bisected(llmc, out, "--max-kl", 0.02 * kl(out))
    names = [f"layers.{layer}" for layer in layers]
    assert (found["blamed"], found["layers"]["blocks"]) == (INT8, names)
    assert found["layers"]["minimal"] is True
    assert found["layers"]["trials"] <= 8
    assert found["rows"][0]["shares"] == {"kl": pytest.approx(1.0)}
    again = tmp_path / "again"
    code, _, said = llmc(
        "compress", damaged(*layers), "-t", "hf", "--pass", found["repair"]["pass"], "-o", again, *workload
    )
    assert code == 0, said
    (measured,) = found["repair"]["measured"]["findings"]
    mended, failed = load_ledger(again).steps[1], load_ledger(out).steps[1]
    # Layers that are rounded to nearest do not know of the others: a new run gives the very model that was measured.
    assert measured["change"] == pytest.approx(mended.quality.kl.value, rel=1e-4)
    assert found["repair"]["added_bytes"] == mended.size_bytes - failed.size_bytes
    assert llmc("gate", again, "--max-kl", 0.02 * kl(out))[0] == 0


def test_the_first_pass_that_fails_is_blamed_with_its_part_of_the_loss(llmc, run):
    tables = "embeddings:bits=4"
    out = run(3, passes=(tables, "rtn:bits=8,group_size=32"))
    first, second = kl(out, tables), kl(out)
    found = bisected(llmc, out, "--max-kl", 2 * first)
    assert found["blamed"] == INT8
    assert [row["verdict"] for row in found["rows"]] == ["PASS", "FAIL", "FAIL"]
    shares = [row["shares"]["kl"] for row in found["rows"]]
    assert shares == pytest.approx([first / second, 1 - first / second, 0.0], abs=1e-3)
    assert found["layers"]["blocks"] == ["layers.3"]
    found = bisected(llmc, out, "--max-kl", first / 2)
    assert (found["blamed"], found["layers"]["blocks"], found["repair"]) == (tables, ["embedding"], None)
    assert "Leave out the pass embeddings" in found["notes"][0]


def test_the_terminal_says_it_in_the_first_line(llmc, run):
    out = run(3)
    code, shown, _ = llmc("bisect", out, "--max-kl", 0.02 * kl(out))
    assert (code, shown.splitlines()[0]) == (0, f"TO BLAME  layers.3 of {INT8}")
    assert f"--pass {INT8},skip=model.layers.3.*" in shown


def test_a_pass_that_changes_the_stream_has_no_layers_of_its_own(llmc, run):
    out = run(3, passes=("prune-depth:fraction=0.2", INT8))
    pruned = load_ledger(out).steps[1]
    found = bisected(llmc, out, "--max-kl", pruned.quality.kl.value / 2)
    assert (found["blamed"], found["layers"]) == (pruned.name, None)
    assert "do not fit into the step before" in found["notes"][0]


def test_a_runtime_is_blamed_where_all_passes_are_within_the_limits(llmc, run):
    out = run(passes=(INT8,), target="onnx-int8")
    step, artifact = load_ledger(out).steps[1], load_ledger(out).steps[-1]
    between = (step.quality.kl.value * artifact.quality.kl.value) ** 0.5
    assert artifact.quality.kl.value > 1.5 * step.quality.kl.value
    found = bisected(llmc, out, "--max-kl", between)
    assert (found["blamed"], found["layers"]) == ("onnx-int8", None)
    assert "llmc compare --runtimes" in found["notes"][0]


def test_without_time_for_trials_what_is_taken_back_is_enough(llmc, run):
    out = run(3)
    found = bisected(llmc, out, "--max-kl", 0.02 * kl(out), "--budget", "0")
    assert (found["layers"]["minimal"], found["layers"]["taken_back"]["verdict"]) == (False, "PASS")
    assert len(found["layers"]["blocks"]) == LAYERS


def test_what_cannot_be_blamed_is_refused(llmc, run, text):
    out = run(3)
    code, _, said = llmc("bisect", out, "--max-kl", 2 * kl(out))
    assert (code, "does not fail" in said) == (2, True)
    code, _, said = llmc("bisect", out, "--max-latency-increase", "5%")
    assert (code, "no limit is on what it tells" in said) == (2, True)
    code, _, said = llmc("bisect", out)
    assert (code, "There is no limit" in said) == (2, True)
    text.write_text("another text " * 3000)
    code, _, said = llmc("bisect", out, "--max-kl", kl(out) / 2)
    assert (code, "is another now" in said) == (2, True)


def test_a_repair_is_run_from_the_steps_before_and_judged(llmc, run, tmp_path):
    tables = "embeddings:group_size=32"
    out, mended = run(3, passes=(tables, INT8)), tmp_path / "mended"
    limit = ("--max-kl", 2 * kl(out, tables))
    code, shown, said = llmc("bisect", out, *limit, "--apply", mended, "--json")
    found = json.loads(shown)
    assert (code, found["applied"]["verdict"]) == (found["applied"]["exit_code"], "PASS"), said
    (measured,) = found["repair"]["measured"]["findings"]
    (applied,) = found["applied"]["findings"]
    assert applied["change"] == pytest.approx(measured["change"], rel=1e-3)
    first = "steps/01-embeddings/model.safetensors"
    assert (mended / first).samefile(out / first)
    assert [row.name for row in load_ledger(mended).steps] == ["original", tables, found["repair"]["pass"], "hf"]
    code, _, said = llmc("bisect", out, *limit, "--apply", mended)
    assert (code, "already exists" in said) == (2, True)
