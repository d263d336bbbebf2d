"""`llmc bisect`: a damaged layer is found, and what cannot be blamed is refused."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from compressor.bisect import layers
from compressor.ledger import load_ledger
from compressor.measure.memory import PeakMemory

LAYERS = 3
INT8 = "rtn:bits=8,group_size=32"
INT4 = "rtn:group_size=32"


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


def down(*layers):
    return [f"model.layers.{layer}.mlp.down_proj" for layer in layers]


def blamed(found):
    return [unit["name"] for unit in found["layers"]["units"]]


def repairs(found):
    return {one["kind"]: one for one in found["repairs"]}


def test_damaged_linears_are_found_and_skipping_them_is_what_mends_it(llmc, run, damaged, workload, tmp_path):
    layers = (0, 2)
    out = run(*layers)
    found = bisected(llmc, out, "--max-kl", 0.02 * kl(out))
    assert (found["blamed"], blamed(found)) == (INT8, down(*layers))
    assert found["layers"]["minimal"] is True
    assert found["rows"][0]["shares"] == {"kl": pytest.approx(1.0)}
    assert "8 bits or more already" in repairs(found)["bits"]["reason"]
    assert "no calibration text" in repairs(found)["samples"]["reason"]
    repair, again = found["repair"], tmp_path / "again"
    assert repair["kind"] == "skip"
    words = repair["change"].split(" ")
    code, _, said = llmc("compress", damaged(*layers), "-t", "hf", *words, "-o", again, *workload)
    assert code == 0, said
    (measured,) = repair["measured"]["findings"]
    mended, failed = load_ledger(again).steps[1], load_ledger(out).steps[1]
    assert measured["change"] == pytest.approx(mended.quality.kl.value, rel=1e-4)
    assert repair["added_bytes"] == mended.size_bytes - failed.size_bytes
    change = mended.quality.kl.value - failed.quality.kl.value
    assert repair["effects"]["kl"]["value"] == pytest.approx(change, rel=1e-3)
    assert 0 < repair["effects"]["kl"]["stderr"] < abs(change)
    assert llmc("gate", again, "--max-kl", 0.02 * kl(out))[0] == 0


def test_eight_bits_are_proposed_where_they_do_and_leaving_out_where_not(llmc, run):
    out = run(passes=(INT4,))
    found = bisected(llmc, out, "--max-kl", 0.8 * kl(out, INT4))
    bits, skip = (repairs(found)[kind] for kind in ("bits", "skip"))
    assert (bits["mends"], skip["mends"]) == (True, True)
    assert 0 < bits["added_bytes"] < skip["added_bytes"]
    assert found["repair"] == bits
    assert bits["change"].startswith(f"--pass {INT4},int8=")


def test_damage_that_eight_bits_do_not_mend_is_left_out(llmc, run):
    out = run(1, passes=(INT4,))
    found = bisected(llmc, out, "--max-kl", 0.8 * kl(out, INT4))
    assert down(1)[0] in blamed(found)
    assert (repairs(found)["bits"]["mends"], found["repair"]["kind"]) == (False, "skip")


def test_a_target_that_cannot_hold_it_says_why(llmc, run):
    out = run(1, passes=("rtn:bits=4,group_size=32",), target="vllm-int4")
    found = bisected(llmc, out, "--max-kl", 0.8 * kl(out, INT4))
    assert "vllm-int4 cannot take this" in repairs(found)["bits"]["reason"]
    assert (repairs(found)["bits"]["measured"], found["repair"]["kind"]) == (None, "skip")


def test_more_calibration_text_is_tried(llmc, run):
    spec = "gptq:group_size=32"
    out = run(1, passes=(spec,))
    found = bisected(llmc, out, "--max-kl", 0.8 * kl(out, spec))
    more = [one for one in found["repairs"] if one["kind"] == "samples"]
    assert more[0]["change"] == "--samples 16"
    assert more[0]["recipe"]["calibration"]["samples"] == 16
    assert (more[0]["added_bytes"], more[0]["measured"] is not None) == (0, True)


def test_more_text_is_doubled_until_the_text_ends(llmc, run):
    """Twice as much, then all that there is; the statistics of this damage do not get better by it."""
    spec = "gptq:group_size=32"
    out = run(1, passes=(spec,), words=("--samples", 48))
    found = bisected(llmc, out, "--max-kl", 0.02 * kl(out, spec))
    more = [one for one in found["repairs"] if one["kind"] == "samples"]
    made = [int(one["change"].split()[1]) for one in more if one["measured"]]
    all_there_is = made[-1]
    assert made[:-1] == [96 * 2**number for number in range(len(made) - 1)]
    assert made[-2] < all_there_is < 2 * made[-2]
    assert more[-1]["reason"] == f"the text has no more than {all_there_is} windows"
    assert [one["mends"] for one in more] == [False] * len(more)


def test_the_first_pass_that_fails_is_blamed_with_its_part_of_the_loss(llmc, run):
    tables = "embeddings:bits=4"
    out = run(1, passes=(tables, INT8))
    first, second = kl(out, tables), kl(out)
    found = bisected(llmc, out, "--max-kl", 2 * first)
    assert found["blamed"] == INT8
    assert [row["verdict"] for row in found["rows"]] == ["PASS", "FAIL", "FAIL"]
    shares = [row["shares"]["kl"] for row in found["rows"]]
    assert shares == pytest.approx([first / second, 1 - first / second, 0.0], abs=1e-3)
    assert blamed(found) == down(1)


def test_a_table_gets_more_bits_or_its_pass_is_left_out(llmc, run):
    tables = "embeddings:bits=4"
    out = run(passes=(tables, INT8))
    found = bisected(llmc, out, "--max-kl", kl(out, tables) / 2)
    assert (found["blamed"], blamed(found)) == (tables, ["model.embed_tokens"])
    assert repairs(found)["skip"]["change"] == f"without {tables}"
    assert found["repair"]["change"] == "--pass embeddings"


def test_the_terminal_says_it_in_the_first_line(llmc, run, tmp_path):
    out = run(1)
    limit = ("--max-kl", 0.02 * kl(out))
    code, shown, _ = llmc("bisect", out, *limit, "--markdown", tmp_path / "blame.md")
    assert (code, shown.splitlines()[0]) == (0, f"TO BLAME  {down(1)[0]} of {INT8}")
    assert f"Repair  --pass {INT8},skip={down(1)[0]}" in shown
    assert f"Repair: `--pass {INT8},skip={down(1)[0]}`" in (tmp_path / "blame.md").read_text()
    for report in ("report.html", "report.md"):
        assert f"{down(1)[0]} of {INT8}" in (out / report).read_text()
    assert llmc("gate", out, "--max-kl", 1000)[0] == 0
    assert down(1)[0] not in (out / "report.md").read_text(), "it explains another verdict"


def test_a_pass_that_changes_the_stream_has_no_layers_of_its_own(llmc, run):
    out = run(1, passes=("prune-depth:fraction=0.34", INT8))
    pruned = load_ledger(out).steps[1]
    found = bisected(llmc, out, "--max-kl", pruned.quality.kl.value / 2)
    assert (found["blamed"], found["layers"]) == (pruned.name, None)
    assert "do not fit into the step before" in found["notes"][0]
    words = ["--max-kl", pruned.quality.kl.value / 2, "--apply", out.parent / "mended"]
    code, _, said = llmc("bisect", out, *words)
    assert (code, "There is no repair to apply" in said) == (2, True)
    assert not (out.parent / "mended").exists()


def test_a_runtime_is_blamed_where_all_passes_are_within_the_limits(llmc, run):
    out = run(passes=(INT8,), target="onnx-int8")
    step, artifact = load_ledger(out).steps[1], load_ledger(out).steps[-1]
    between = (step.quality.kl.value * artifact.quality.kl.value) ** 0.5
    assert artifact.quality.kl.value > 1.5 * step.quality.kl.value
    found = bisected(llmc, out, "--max-kl", between)
    assert (found["blamed"], found["layers"]) == ("onnx-int8", None)
    assert "llmc compare --runtimes" in found["notes"][0]


def test_without_time_for_trials_what_is_taken_back_is_enough(llmc, run):
    out = run(1)
    found = bisected(llmc, out, "--max-kl", 0.02 * kl(out), "--budget", "0")
    assert (found["layers"]["minimal"], found["layers"]["taken_back"]["verdict"]) == (False, "PASS")
    assert len(blamed(found)) == 7 * LAYERS
    assert "not tried" in repairs(found)["skip"]["reason"]


def test_a_gate_that_passes_has_nothing_to_blame(llmc, run):
    out = run(1)
    code, shown, _ = llmc("bisect", out, "--max-kl", 2 * kl(out), "--apply", out.parent / "mended")
    assert (code, "Nothing: the gate passes" in shown) == (0, True)
    assert not (out.parent / "mended").exists()
    found = bisected(llmc, out, "--max-kl", 2 * kl(out))
    assert (found["gate"]["verdict"], found["blamed"], found["rows"]) == ("PASS", None, [])


def test_a_gate_that_cannot_tell_blames_nothing(llmc, run):
    out = run(1)
    code, shown, _ = llmc("bisect", out, "--max-kl", kl(out))
    assert (code, "Not known" in shown, "--more-samples" in shown) == (3, True, True)


def test_what_cannot_be_blamed_is_refused(llmc, run, text):
    out = run(1)
    code, _, said = llmc("bisect", out, "--max-latency-increase", "5%")
    assert (code, "no limit is on one of these" in said) == (2, True)
    code, _, said = llmc("bisect", out)
    assert (code, "There is no limit" in said) == (2, True)
    text.write_text("another text " * 3000)
    code, _, said = llmc("bisect", out, "--max-kl", kl(out) / 2)
    assert (code, "is another now" in said) == (2, True)


def test_without_the_steps_the_pass_is_blamed_and_its_layers_are_not_looked_for(llmc, run):
    out = run(1)
    shutil.rmtree(out / "steps")
    found = bisected(llmc, out, "--max-kl", kl(out) / 2)
    assert (found["blamed"], found["layers"], found["repairs"]) == (INT8, None, [])
    assert "--resume` makes it again" in found["notes"][0]


def test_an_interrupted_bisection_goes_on_with_what_it_has_tried(llmc, run, monkeypatch, tmp_path):
    """The run is as it was; the same command judges and makes only what was not, and finds the same."""
    out, spec = run(1, passes=("embeddings:group_size=32", INT4)), INT4
    before = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))}
    words = ("bisect", out, "--max-kl", 0.5 * kl(out, spec))
    scores, made = [], []

    def broken_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("compressor.bisect.repair.Bench._measured", broken_off)
        code, _, said = llmc(*words, "--apply", tmp_path / "mended")
    assert (code, "the same command goes on from there" in said, "--resume" in said) == (4, True, False)
    assert not (tmp_path / "mended").exists()
    trials = out / "bisect-trials"
    assert {path: path.stat().st_mtime_ns for path in before if path != out} == {
        path: at for path, at in before.items() if path != out
    }
    assert len(list(trials.glob("scores-*.npz"))) > 1
    assert list(trials.glob("repair-*/02-rtn"))

    class Counted(PeakMemory):
        def __enter__(self):
            made.append(self)
            return super().__enter__()

    judged = layers.checkpoint_scores
    monkeypatch.setattr(layers, "checkpoint_scores", lambda *given: scores.append(given[0]) or judged(*given))
    monkeypatch.setattr("compressor.steps.PeakMemory", Counted)
    found = bisected(llmc, *words[1:])
    tried = [one for one in found["repairs"] if one["measured"]]
    assert len(scores) == len(tried)
    assert len(made) == len(tried) - 1, "the first one was made before"
    assert tried[0]["seconds"] > 0
    assert not trials.exists()
    monkeypatch.undo()
    assert without_seconds(bisected(llmc, *words[1:])) == without_seconds(found)


def without_seconds(found):
    return found | {"repairs": [one | {"seconds": None} for one in found["repairs"]], "repair": found["repair"]["kind"]}


def test_a_repair_is_run_from_the_steps_before_and_judged(llmc, run, tmp_path):
    tables = "embeddings:group_size=32"
    out, mended = run(1, passes=(tables, INT8)), tmp_path / "mended"
    limit = ("--max-kl", 2 * kl(out, tables))
    code, shown, said = llmc("bisect", out, *limit, "--apply", mended, "--json")
    found = json.loads(shown)
    assert (code, found["applied"]["verdict"]) == (found["applied"]["exit_code"], "PASS"), said
    (measured,) = found["repair"]["measured"]["findings"]
    (applied,) = found["applied"]["findings"]
    assert applied["change"] == pytest.approx(measured["change"], rel=1e-3)
    first = "steps/01-embeddings/model.safetensors"
    assert (mended / first).samefile(out / first)
    rows, known = load_ledger(mended).steps, load_ledger(out).steps
    spelled = found["repair"]["change"].removeprefix("--pass ")
    assert [row.name for row in rows] == ["original", tables, spelled, "hf"]
    assert rows[2].seconds == found["repair"]["seconds"], "what the trial made is not made again"
    assert [row.samples for row in rows[:2]] == [row.samples for row in known[:2]]
    assert "llmc gate: PASS" in (mended / "report.md").read_text()
    assert llmc("gate", mended, *limit)[0] == 0
    code, _, said = llmc("bisect", out, *limit, "--apply", mended)
    assert (code, "already exists" in said) == (2, True)


def test_against_another_run(llmc, run, damaged, workload, tmp_path):
    out, base = run(1), tmp_path / "base"
    sound = ("--pass", f"{INT8},skip={down(1)[0]}")
    assert llmc("compress", damaged(1), "-t", "hf", *sound, "-o", base, *workload)[0] == 0
    limit = ("--max-perplexity-increase", "1%")
    found = bisected(llmc, out, "--against", base, *limit)
    assert found["against"] == f"hf of {base}"
    assert (blamed(found), found["repair"]["kind"]) == (down(1), "skip")
    code, shown, said = llmc("bisect", out, "--against", base, *limit, "--apply", tmp_path / "mended", "--json")
    assert (code, json.loads(shown)["applied"]["verdict"]) == (0, "PASS"), said
    assert bisected(llmc, base, "--against", out, *limit)["blamed"] is None
