import json

import pytest

from compressor.errors import InputError
from compressor.tasks.task import load_task

LINES = [{"text": "good", "label": 1}, {"text": "bad", "label": "no"}]
TASK = "kind: classification\ndata: data.jsonl\nprompt: '{{ text }}:'\nanswer: label\nchoices: [' no', ' yes']\n"


@pytest.fixture
def files(tmp_path):
    def make(task=TASK, data=None):
        content = "".join(json.dumps(line) + "\n" for line in LINES).encode() if data is None else data
        (tmp_path / "data.jsonl").write_bytes(content)
        path = tmp_path / "mood.yaml"
        path.write_text(task)
        return path

    return make


def test_prompts_and_answers_come_from_the_lines(files):
    loaded = load_task(files())
    assert loaded.name == "mood"
    assert [(one.line, one.prompt, one.answers) for one in loaded.samples] == [(1, "good:", 1), (2, "bad:", 0)]


def test_an_answer_is_an_expression(files):
    task = "kind: question-answering\ndata: data.jsonl\nprompt: '{{ q }}'\nanswer: answers.text\n"
    data = json.dumps({"q": "Who?", "answers": {"text": ["Ann", "ann"]}}).encode()
    assert load_task(files(task, data)).samples[0].answers == ["Ann", "ann"]


def test_the_digest_is_of_what_is_asked_and_not_of_where_it_lies(files, tmp_path):
    first = load_task(files()).digest
    (tmp_path / "moved.jsonl").write_bytes((tmp_path / "data.jsonl").read_bytes())
    assert load_task(files(TASK.replace("data.jsonl", "moved.jsonl"))).digest == first
    assert load_task(files(TASK.replace("}}:", "}}?"))).digest != first
    assert load_task(files(TASK + "samples: 1\n")).digest != first


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "data.jsonl has no samples."),
        (b'{"text": "a", "label": 1}\n\xff\xfe\n', "data.jsonl:2 is not JSON in UTF-8."),
        (b'{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n', "data.jsonl:2 is an empty line."),
        (b'{"text": "a"\n', "data.jsonl:1 is not JSON in UTF-8."),
        (b"[1, 2]\n", "data.jsonl:1 is not a JSON object."),
        (b'{"text": "a", "label": 1}\n{"label": 1}\n', "data.jsonl:2 lacks a field of the template: 'text'"),
        (b'{"text": "a"}\n', "data.jsonl:1 lacks a field of the template: 'label'"),
        (b'{"review": "a", "stars": 1}\n', "template: 'text' is undefined. It has review, stars."),
        (b'{"text": null, "label": 1}\n', "data.jsonl:1 lacks a field of the template: a value in it is null."),
        (b'{"text": "a", "label": null}\n', "data.jsonl:1: the answer None is none of the choices no, yes."),
        (b'{"text": "a", "label": "maybe"}\n', "data.jsonl:1: the answer 'maybe' is none of the choices no, yes."),
        (b'{"text": "a", "label": 2}\n', "data.jsonl:1: the answer 2 is none of the choices no, yes."),
    ],
)
def test_a_bad_line_is_named(files, data, said):
    with pytest.raises(InputError) as error:
        load_task(files(data=data))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("- a", "is not a mapping"),
        (
            TASK.replace("classification", "guessing"),
            "kind: there is no 'guessing'; known: classification, generation,",
        ),
        (
            TASK.replace("classification", "clasification"),
            "kind: there is no 'clasification'; did you mean 'classification'?",
        ),
        (TASK.replace("kind: classification", ""), "kind: it is missing; known: classification, generation,"),
        (TASK.replace("prompt", "promt"), "promt: a classification has no such key; did you mean 'prompt'?"),
        (TASK.replace("prompt", "# prompt"), "prompt: it is missing."),
        (TASK + "shots: 3\n", "shots: a classification has no such key; known: answer, "),
        (TASK.replace("[' no', ' yes']", "[' no']"), "choices"),
        (
            TASK.replace("[' no', ' yes']", "[no, yes]"),
            "choices.0: YAML takes no, off or false without quotes for false",
        ),
        (
            TASK.replace("[' no', ' yes']", "['a', yes]"),
            "choices.1: YAML takes yes, on or true without quotes for true",
        ),
        (TASK.replace("[' no', ' yes']", "[1, 2]"), "choices.0: YAML takes 1 without quotes for a number; quote it."),
        (TASK.replace("{{ text }}:", "{{ text "), "cannot be read"),
        (TASK.replace("data.jsonl", "none.jsonl"), "none.jsonl cannot be read (No such file or directory)."),
    ],
)
def test_a_bad_task_file_is_explained(files, task, said):
    with pytest.raises(InputError, match=r"task|none") as error:
        load_task(files(task))
    assert said in str(error.value)


def test_a_template_may_say_what_stands_for_null(files):
    task = TASK.replace("{{ text }}", '{{ text or "nothing" }}')
    assert load_task(files(task, b'{"text": null, "label": 1}\n')).samples[0].prompt == "nothing:"


def test_a_template_runs_no_code(files):
    with pytest.raises(InputError):
        load_task(files(TASK.replace("{{ text }}", "{{ text.__class__.__mro__ }}")))


def test_a_stop_string_that_every_text_has_is_refused(files):
    task = "kind: generation\ndata: data.jsonl\nprompt: '{{ text }}'\nanswer: text\nstop: ['.', '']\n"
    with pytest.raises(InputError, match=r"stop\.1: String should have at least 1 character"):
        load_task(files(task))
