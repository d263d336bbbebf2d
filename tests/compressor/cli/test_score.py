"""`llmc score`: tasks asked of a run's original, steps and artifact, kept for the gate."""

import json

import numpy as np
import pytest
from pyarrow import parquet

from compressor.ledger import load_ledger

CLASSES = "kind: classification\ndata: mood.jsonl\nprompt: '{{ text }} is'\nanswer: label\nchoices: [' good', ' bad']\n"
QUESTIONS = "kind: question-answering\ndata: q.jsonl\nprompt: '{{ q }}'\nanswer: a\nmax_tokens: 4\nstop: []\n"


@pytest.fixture
def tasks(tmp_path):
    words = ["sun", "rain", "tea", "cold", "warm", "wind"]
    mood = [
        {"text": f"{one} {two}", "label": (i + j) % 2} for i, one in enumerate(words) for j, two in enumerate(words)
    ]
    questions = [{"q": f"What of {word}?", "a": [word, "no"]} for word in words]
    for name, lines in (("mood", mood), ("q", questions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mood.yaml").write_text(CLASSES)
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    return ["--task", tmp_path / "mood.yaml", "--task", tmp_path / "q.yaml"]


@pytest.fixture
def run(llmc, tiny_model, tmp_path):
    out = tmp_path / "out"
    passes = ("--pass", "rtn:group_size=32")
    code, _, said = llmc("compress", tiny_model("llama"), "-t", "onnx-int4", *passes, "--measure", "none", "-o", out)
    assert code == 0, said
    return out


def test_answers_are_kept_beside_the_ledger_and_judged_in_pairs(llmc, run, tasks):
    code, shown, said = llmc("score", run, *tasks, "--json")
    assert code == 0, said
    assert list(json.loads(shown)) == ["original", "onnx-int4"]
    rows = {row.name: row for row in load_ledger(run).steps}
    record = rows["onnx-int4"].tasks[0]
    assert (record.name, record.kind, record.judged) == ("mood", "classification", ["accuracy"])
    assert record.runtime.startswith("onnxruntime")
    assert record.samples.count == 36
    found = parquet.read_table(run / record.samples.path).to_pandas()
    assert found.accuracy.mean() == pytest.approx(record.metrics["accuracy"].value)
    best = np.stack(found.likelihoods).argmax(axis=1)
    assert [["good", "bad"][one] for one in best] == found.prediction.tolist()

    code, shown, _ = llmc("gate", run, "--max-accuracy-drop", "50%", "--json")
    findings = {one["title"]: one for one in json.loads(shown)["findings"]}
    assert list(findings) == ["mood (accuracy)", "q (exact_match)", "q (f1)"]
    assert findings["mood (accuracy)"]["verdict"] == "PASS"
    assert findings["q (f1)"]["reason"] == "only 6 samples; a verdict needs 20"
    assert findings["mood (accuracy)"]["before"] == pytest.approx(rows["original"].tasks[0].metrics["accuracy"].value)


def test_the_size_of_batches_changes_no_answer(llmc, run, tasks, tmp_path):
    """The step's in float32, and the artifact's; what is asked of a run, of a folder, and in a run."""
    for folder in (run / "artifact", run / "steps" / "01-rtn"):
        shown = [llmc("score", folder, *tasks, "--json", "--batch-size", size) for size in (1, 7)]
        one, seven = (json.loads(out) for _, out, _ in shown)
        ((_, alone),), ((_, together),) = one.items(), seven.items()
        for task, metrics in alone.items():
            for name, found in metrics.items():
                assert together[task][name]["value"] == pytest.approx(found["value"], abs=1e-6), (task, name)
    code, _, said = llmc("score", run, *tasks, "--batch-size", 0)
    assert (code, "--batch-size" in said) == (2, True)


def test_what_was_asked_is_not_asked_again(llmc, run, tasks, monkeypatch):
    assert llmc("score", run, *tasks)[0] == 0
    before = (run / "ledger.json").read_text()
    monkeypatch.setattr("compressor.tasks.ask.score", None)
    assert llmc("score", run, *tasks)[0] == 0
    assert (run / "ledger.json").read_text() == before


def test_a_run_scores_tasks_itself(llmc, tiny_model, tmp_path, tasks, monkeypatch):
    out, task = tmp_path / "scored", tasks[2:]
    small = ("--pass", "rtn:group_size=32", "--prompt", 8, "--output-tokens", 2, "-o", out)
    code, _, said = llmc("compress", tiny_model("llama"), "-t", "onnx-int4", "-t", "vllm-int4", *task, *small)
    assert code == 0, said
    assert said.count("asking original q") == 1, "targets share it"
    rows = {row.name: row for row in load_ledger(out / "onnx-int4").steps}
    other = {row.name: row for row in load_ledger(out / "vllm-int4").steps}
    assert [name for name, row in rows.items() if row.tasks] == ["original", "onnx-int4"]
    assert rows["onnx-int4"].tasks[0].runtime.startswith("onnxruntime")
    assert [name for name, row in other.items() if row.tasks] == ["original", "rtn:group_size=32"], "vLLM is not here"
    assert other["original"].tasks == rows["original"].tasks
    assert "q exact match" in (out / "onnx-int4" / "report.html").read_text()
    code, shown, _ = llmc("gate", out / "onnx-int4", "--max-accuracy-drop", "99%", "--json")
    assert [one["metric"] for one in json.loads(shown)["findings"]] == ["task:q", "task:q:f1"]
    monkeypatch.setattr("compressor.tasks.ask.score", None)
    assert llmc("score", out / "onnx-int4", *task)[0] == 0, "it has been asked"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--measure", "none"], "There are tasks to score, and measuring is switched off."),
        ([], "Line 1 has 600 tokens and 4 to be generated, and the model's context is 512."),
    ],
)
def test_a_run_refuses_a_task_that_it_cannot_ask_before_any_work(llmc, tiny_model, tmp_path, tasks, words, sentence):
    (tmp_path / "q.jsonl").write_text(json.dumps({"q": "x" * 600, "a": "y"}) + "\n")
    out = tmp_path / "scored"
    code, _, said = llmc(
        "compress", tiny_model("llama"), "-t", "hf", "--pass", "rtn:group_size=32", *tasks, *words, "-o", out
    )
    assert code == 2
    assert sentence in said
    assert not out.exists()


def test_a_step_is_a_row_and_a_folder(llmc, run, tasks):
    code, shown, said = llmc("score", run, *tasks[:2], "--row", "rtn:group_size=32", "--json")
    assert code == 0, said
    (of_row,) = json.loads(shown).values()
    code, shown, _ = llmc("score", run / "steps" / "01-rtn", *tasks[:2], "--json")
    ((name, of_folder),) = json.loads(shown).items()
    assert of_folder == of_row
    assert name.endswith("01-rtn, llmc, float32")
    code, shown, _ = llmc("score", run / "artifact", *tasks)
    assert code == 0
    assert "mood (36 samples): accuracy" in shown


def test_another_task_of_the_same_name_is_not_compared(llmc, run, tasks, tmp_path):
    assert llmc("score", run, *tasks[:2], "--row", "original")[0] == 0
    (tmp_path / "mood.yaml").write_text(CLASSES + "samples: 5\n")
    assert llmc("score", run, *tasks[:2], "--row", "onnx-int4")[0] == 0
    code, _, said = llmc("gate", run, "--max-accuracy-drop", "2%")
    assert code == 2
    assert "The task mood is another" in said


def test_the_original_has_to_be_asked_too(llmc, run, tasks):
    assert llmc("score", run, *tasks[:2], "--row", "onnx-int4")[0] == 0
    code, _, said = llmc("gate", run, "--max-accuracy-drop", "2%")
    assert code == 2
    assert "'original' of" in said
    assert "was not asked the task mood" in said


def test_a_model_that_changed_is_not_the_original(llmc, run, tasks, tiny_model):
    other = tiny_model("llama", hidden_size=96)
    code, _, said = llmc("score", run, *tasks, "--original", other)
    assert code == 2
    assert "its digest is another" in said


def test_a_prompt_that_does_not_fit_is_named_by_its_line(llmc, run, tasks, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"q": "x" * 600, "a": "y"}) + "\n")
    code, _, said = llmc("score", run, *tasks[2:])
    assert code == 2
    assert "Line 1 has 600 tokens and 4 to be generated, and the model's context is 512." in said


def test_what_is_for_a_run_is_refused_for_a_folder(llmc, tiny_model, tasks):
    root = tiny_model("llama")
    for option in (("--row", "original"), ("--original", root)):
        code, shown, said = llmc("score", root, *tasks, *option)
        assert (code, shown) == (2, "")
        assert f"{option[0]} is for a run, and {root} is none: it has no ledger.json." in said


def test_likelihoods_that_are_no_numbers_are_said(llmc, tiny_model, tasks, monkeypatch):
    from compressor.measure.answers import CheckpointAnswerer, Likelihood

    def broken(self, texts, progress):
        return [Likelihood(float("nan") if at < 6 else -float(at % 2), False) for at in range(len(texts))]

    monkeypatch.setattr(CheckpointAnswerer, "likelihoods", broken)
    code, _, said = llmc("score", tiny_model("llama"), *tasks[:2])
    assert code == 0
    assert "3 of 36 samples of mood have a likelihood that is no number, and count as wrong." in said
