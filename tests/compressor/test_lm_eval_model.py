"""The model type `llmc` of lm-evaluation-harness, next to its own type `hf` on the same folder."""

import json

import pytest

lm_eval = pytest.importorskip("lm_eval")

CHOICES = """
task: moods
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}} is"
doc_to_choice: [good, bad]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [{"text": f"{one} day", "label": number % 2} for number, one in enumerate(["a sunny", "the", "no", "my"])]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("moods", CHOICES), ("rolling", ROLLING), ("writing", WRITING)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def test_it_answers_as_transformers_does(llmc, tiny_model, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    root = tiny_model("llama")
    names = ["moods", "rolling", "writing"]
    code, shown, said = llmc(
        "lm-eval", root, "--tasks", ",".join(names), "--include-path", tasks, "-o", tmp_path / "logs", "--json"
    )
    assert code == 0, said
    found = json.loads(shown)
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(root), dtype="float32", device="cpu"),
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks)),
    )
    for name in names:
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert found[name][metric] == pytest.approx(value, rel=1e-3), metric
    ours = _samples(tmp_path / "logs", "writing")
    assert ours == [one["filtered_resps"] for one in theirs["samples"]["writing"]]
    assert any(text for (text,) in ours)


def _samples(logs, task):
    (file,) = logs.rglob(f"samples_{task}_*.jsonl")
    lines = sorted(map(json.loads, file.read_text().splitlines()), key=lambda one: one["doc_id"])
    return [line["filtered_resps"] for line in lines]


def test_an_artifact_answers_in_its_own_runtime(tiny_model, llmc, tmp_path):
    from compressor.lm_eval_model import LlmcLM

    out = tmp_path / "out"
    passes = ("--pass", "rtn:group_size=32")
    code, _, said = llmc("compress", tiny_model("llama"), "-t", "onnx-int4", *passes, "--measure", "none", "-o", out)
    assert code == 0, said
    asked = LlmcLM(str(out / "artifact"), batch_size=1)
    assert asked.runtime.startswith("onnxruntime")
    (pair,) = asked._loglikelihood_tokens([(None, [5, 6], [7, 8])])
    step = LlmcLM(str(out / "steps" / "01-rtn"))
    (expected,) = step._loglikelihood_tokens([(None, [5, 6], [7, 8])])
    assert pair[0] == pytest.approx(expected[0], abs=0.3)  # its activations are int8
    asked.close()
    step.close()


def test_unknown_tasks_arguments_and_sampling_are_refused(llmc, tiny_model, tasks):
    from compressor.errors import InputError
    from compressor.lm_eval_model import LlmcLM

    root = tiny_model("llama")
    code, _, said = llmc("lm-eval", root, "--tasks", "moods,nothing", "--include-path", tasks)
    assert (code, "no task 'nothing'" in said) == (2, True)
    with pytest.raises(InputError, match="no argument 'dtype'"):
        LlmcLM(str(root), dtype="float16")
    with pytest.raises(InputError, match="generates greedily"):
        LlmcLM(str(root))._generated(["a"], {"do_sample": True, "temperature": 0.7}, lambda *_: None)
    with pytest.raises(InputError, match="'many' is no number"):
        LlmcLM(str(root), batch_size="many")
