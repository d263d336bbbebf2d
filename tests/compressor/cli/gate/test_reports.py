"""What `llmc gate` leaves for CI, the gate of a recipe, and the action."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[4]
PERPLEXITY = "--max-perplexity-increase"


def test_junit_has_a_case_a_metric(llmc, run, tmp_path, scores):
    llmc("gate", run(found=scores(0.08)), PERPLEXITY, "2%", "--max-accuracy-drop", "5.5%", "--max-kl", "0.5",
         "--junit", tmp_path / "ci" / "gate.xml")  # fmt: skip
    (suite,) = ElementTree.parse(tmp_path / "ci" / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    failed, *others = suite.findall("testcase")
    assert failed.find("failure").get("message").startswith("perplexity ")
    assert all(case.find("failure") is None for case in others)


def test_inconclusive_is_an_error_in_junit_and_odd_characters_do_no_harm(run, scores, edit):
    from compressor.gate import junit
    from compressor.gate.gate import gate
    from compressor.gate.limits import Limits
    from compressor.gate.subject import Run

    out = run(found=scores(0.0198))
    edit(out, lambda ledger: setattr(ledger.steps[1], "name", "a<b>\x00&"))
    decision = gate(Run.open(out), Limits(max_perplexity_increase="2%"))
    (suite,) = ElementTree.fromstring(junit.render(decision))
    assert suite.get("errors") == "1"
    assert suite.find("testcase/error").get("type") == "INCONCLUSIVE"
    assert suite.get("name") == "a<b>\ufffd& against original"


def test_markdown_is_for_a_pull_request(llmc, run, tmp_path):
    llmc("gate", run(), PERPLEXITY, "2%", "--markdown", tmp_path / "gate.md")
    text = (tmp_path / "gate.md").read_text()
    assert text.startswith("### ✅ llmc gate: PASS\n\nonnx-int4 against original: perplexity at most ")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


@pytest.fixture
def whole_run(llmc, tiny_model, tmp_path):
    """The folder of a run as `llmc compress` leaves it, without a gate."""
    (tmp_path / "text.txt").write_text("The fox sees the hen near the old mill, and is called. " * 40)
    words = ["--eval", tmp_path / "text.txt", "--eval-length", 64, "--prompt", 8, "--output-tokens", 2]
    spec = ["--pass", "rtn:group_size=32"]
    code, _, said = llmc("compress", tiny_model("llama"), "-t", "hf", *spec, "-o", tmp_path / "out", *words)
    assert code == 0, said
    return tmp_path / "out"


def test_the_reports_of_a_run_have_the_last_verdict_on_what_ships(llmc, whole_run, run):
    def shown():
        return [word for word in ("PASS", "FAIL") if all(
            f"llmc gate: {word}" in (whole_run / "report.md").read_text() and word in text
            for text in [(whole_run / "report.html").read_text()]
        )]  # fmt: skip

    assert shown() == []
    assert llmc("gate", whole_run, "--max-kl", "0")[0] == 1
    assert shown() == ["FAIL"]
    assert llmc("gate", whole_run, "--max-kl", "1000", "--row", "hf")[0] == 0
    assert shown() == ["FAIL"], "--row may be any row, which does not ship"
    assert llmc("gate", whole_run, "--max-kl", "1000")[0] == 0
    assert shown() == ["PASS"]
    assert json.loads((whole_run / "gate.json").read_text())["verdict"] == "PASS"
    bare = run("bare")
    before = sorted(bare.iterdir())
    llmc("gate", bare, PERPLEXITY, "2%")
    assert sorted(bare.iterdir()) == before, "where there are no reports, nothing is added"


def test_reports_that_cannot_be_written_do_not_change_the_verdict(llmc, whole_run, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("compressor.report.files.write_reports", refuse)
    code, shown, said = llmc("gate", whole_run, "--max-kl", "0")
    assert (code, "FAIL" in shown, "stay as they are: Permission denied" in said) == (1, True, True)


# ---- the recipe's gate, and the action


@pytest.mark.parametrize(("gate", "code"), [({"max_kl": 1000}, 0), ({"max_perplexity_increase": "0%", "max_kl": 0}, 1)])
def test_compress_ends_with_the_gate_of_its_recipe(llmc, tiny_model, tmp_path, gate, code):
    (tmp_path / "text.txt").write_text("The fox sees the hen near the old mill, and is called. " * 40)
    recipe = {
        "model": str(tiny_model("llama")), "target": "hf", "passes": ["rtn:group_size=32"], "gate": gate,
        "measure": {"texts": str(tmp_path / "text.txt"), "length": 64, "latency": {"prompt": 8, "output": 2}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found, shown, err = llmc("compress", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert found == code, err
    assert ("PASS" if code == 0 else "FAIL") in shown
    assert json.loads((tmp_path / "out" / "gate.json").read_text())["exit_code"] == code
    assert llmc("gate", tmp_path / "out")[0] == code, "the recipe's limits hold without others"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": {"max_perplexity_increase": "2%"}}, "no evaluation text"),
        ({"gate": {"alpha": 0.1}}, "has no limit"),
        ({"gate": {"max_kl": 1}, "measure": {"effort": "none"}}, "measuring is switched off"),
        (
            {"gate": {"max_latency_increase": "5%"}, "target": "trt-int4", "passes": ["rtn:group_size=64"]},
            "cannot be run",
        ),
        ({"gate": {"max_perplexity_increase": 2}}, "2 is more than all"),
        ({"gate": {"max_perplexity": "2%"}}, "did you mean 'max_perplexity_increase'?"),
    ],
)
def test_a_gate_that_cannot_decide_is_refused_before_any_work(llmc, tiny_model, tmp_path, changes, message):
    recipe = {"model": str(tiny_model("llama")), "target": "hf", "passes": ["rtn:group_size=32"]} | changes
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = llmc("compress", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def _run_action(folder, given, llmc):
    """The action's own step in bash, as GitHub runs it; `llmc` is the line of a shell script of this name."""
    action = yaml.safe_load((ROOT / ".github/actions/llmc-gate/action.yml").read_text())
    (step,) = [step for step in action["runs"]["steps"] if step.get("id") == "gate"]
    defaults = {name: str(one.get("default", "")) for name, one in action["inputs"].items()}
    inputs = {f"${{{{ inputs.{name} }}}}": value for name, value in (defaults | given).items()}
    environment = {name: inputs[value] for name, value in step["env"].items()}
    (folder / "llmc").write_text(f"#!/bin/sh\n{llmc}\n")
    (folder / "llmc").chmod(0o755)
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(folder / "o"),
                    "GITHUB_STEP_SUMMARY": str(folder / "summary"), "PYTHONPATH": str(ROOT)}  # fmt: skip
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_the_action_gives_every_input_to_llmc(tmp_path):
    options = {"against": "a b", "row": "r", "max-perplexity-increase": "1%", "max-accuracy-drop": "2%",
               "max-latency-increase": "3%", "max-kl": "0.1", "alpha": "0.01", "budget": "5"}  # fmt: skip
    given = options | {"ledger": "out", "more-samples": "true"}
    found = _run_action(tmp_path, given, 'printf "%s\\n" "$@" > words; echo PASS > llmc-gate/gate.md')
    assert found.returncode == 0, found.stderr
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:6] == ["gate", "--json", "--junit", "llmc-gate/gate.xml", "--markdown", "llmc-gate/gate.md"]
    assert words[6:-3] == [word for name, value in options.items() for word in (f"--{name}", value)]
    assert words[-3:] == ["--more-samples", "--", "out"]


@pytest.mark.parametrize(
    ("worse", "inconclusive", "code", "verdict"),
    [(0.0, "fail", 0, "PASS"), (0.08, "fail", 1, "FAIL"), (0.0198, "fail", 3, "INCONCLUSIVE"),
     (0.0198, "pass", 0, "INCONCLUSIVE"), (None, "fail", 2, None)],
)  # fmt: skip
def test_the_action_stops_a_job_with_the_verdict(run, tmp_path, worse, inconclusive, code, verdict, scores):
    out = "no-such-run" if worse is None else run(found=scores(worse))
    given = {"ledger": str(out), "max-perplexity-increase": "2%", "inconclusive": inconclusive}
    found = _run_action(tmp_path, given, f'exec {sys.executable} -c "from compressor.cli import main; main()" "$@"')
    assert found.returncode == code, found.stderr
    if verdict is None:
        assert "There is no ledger" in found.stderr
        return
    assert (tmp_path / "o").read_text() == f"verdict={verdict}\n"
    assert verdict in (tmp_path / "summary").read_text()
    assert json.loads((tmp_path / "llmc-gate/gate.json").read_text())["verdict"] == verdict


def test_the_example_workflow_gives_the_action_only_inputs_that_it_has():
    action = yaml.safe_load((ROOT / ".github/actions/llmc-gate/action.yml").read_text())
    workflow = yaml.safe_load((ROOT / "examples/ci/gate.yml").read_text())
    uses = [step for step in workflow["jobs"]["gate"]["steps"] if step.get("uses", "").endswith("llmc-gate")]
    assert len(uses) == 1
    assert set(uses[0]["with"]) <= set(action["inputs"])
