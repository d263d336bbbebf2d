"""A task file: data in JSON lines, a prompt template, and what counts as right.

Templates are Jinja's, as in chat templates and in lm-evaluation-harness; `answer` is an expression in it: `label`,
`answers.text` and `labels[0]` are ways to say where the answer stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from jinja2 import StrictUndefined, TemplateError, UndefinedError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compressor.errors import InputError, listed, nearest
from compressor.files import digest_json
from compressor.json_lines import json_lines
from compressor.templates import Sandbox, checked, limited
from compressor.yaml_file import read_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def _no_null(value: Any) -> Any:
    """Jinja would write `None` into the prompt."""
    if value is None:
        raise UndefinedError("a value in it is null")
    return value


JINJA = Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_no_null)


class _Task(BaseModel):
    """What all tasks have.

    Attributes:
        task: its name.
        data: JSON lines, a sample a line; relative to the task file.
        prompt: a Jinja template over the fields of a line.
        answer: a Jinja expression over the same.
        chat: whether the prompt is a user's message, rendered through the model's chat template.
        samples: at most so many, from the first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    data: Path
    prompt: str
    answer: str
    chat: bool = False
    samples: int | None = Field(None, ge=1)


class Classification(_Task):
    """Which of some `choices` is the most likely to follow the prompt; `answer` is a choice or its number from 0.

    Attributes:
        normalize: whether log-likelihoods are divided by the bytes of the choice, as `acc_norm` of lm-eval does.
    """

    kind: Literal["classification"]
    choices: list[str] = Field(min_length=2)
    normalize: bool = False


class _Generating(_Task):
    max_tokens: int = Field(64, ge=1)
    stop: list[Annotated[str, Field(min_length=1)]] = ["\n"]


class Generation(_Generating):
    """A text that is compared with the reference `answer`, or with several."""

    kind: Literal["generation"]


class QuestionAnswering(_Generating):
    """A short answer, right if it is the expected one (or one of several) but for case, punctuation and articles."""

    kind: Literal["question-answering"]
    max_tokens: int = Field(32, ge=1)


Task = Classification | Generation | QuestionAnswering
KINDS: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="kind")])


@dataclass(frozen=True)
class Sample:
    """One line of the data.

    Attributes:
        line: its number, from 1.
        answers: those that are right; of a classification, the number of the choice.
    """

    line: int
    prompt: str
    answers: list[str] | int


@dataclass(frozen=True)
class LoadedTask:
    """A task with its samples. `digest` is of all that decides which answers are right: equal ones can be compared."""

    task: Task
    samples: list[Sample]
    digest: str

    @property
    def name(self) -> str:
        return self.task.task


def load_task(path: Path) -> LoadedTask:
    """Read a task file and its data.

    Raises:
        InputError: either cannot be read, or a line lacks what the templates ask for; one sentence, with the line.
    """
    task = _read(path)
    data = path.parent / task.data
    samples = list(_samples(task, data))
    if not samples:
        raise InputError(f"{data} has no samples.")
    plain = task.model_dump(mode="json", exclude={"data", "samples"})
    return LoadedTask(task, samples, digest_json({"task": plain, "samples": [vars(one) for one in samples]}))


def load_tasks(paths: Sequence[Path]) -> list[LoadedTask]:
    """Read several, which have names of their own.

    Raises:
        InputError: as above, or two are called the same.
    """
    loaded = [load_task(path) for path in paths]
    names = [one.name for one in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"Two tasks are called {twice}.", "`task:` in the file gives another name.")
    return loaded


def _read(path: Path) -> Task:
    values, _ = read_yaml(path, "The task")
    if not isinstance(values, dict):
        raise InputError(f"The task {path} is not a mapping of keys to values.")
    try:
        return KINDS.validate_python({"task": path.stem} | values)
    except ValidationError as error:
        # A misspelt key is unknown, and the right one is missing: the first says more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"][1:] or first["loc"]))
        said = _unknown(first) or _unquoted(first) or first["msg"].rstrip(".")
        end = "" if said.endswith("?") else "."
        raise InputError(f"The task {path}: {where or 'kind'}: {said}{end}") from error


def _unknown(error: ErrorDetails) -> str | None:
    """What to do about a task of no kind or of one that does not exist, and about a key that its kind does not have."""
    kinds = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in get_args(Task)}
    if error["type"] == "union_tag_not_found":
        return f"it is missing; {listed(kinds)}"
    if error["type"] == "missing":
        return "it is missing"
    if error["type"] == "union_tag_invalid":
        kind = str(error["input"]["kind"])
        return f"there is no {kind!r}; {nearest(kind, kinds)}"
    if error["type"] == "extra_forbidden":
        kind, key = str(error["loc"][0]), str(error["loc"][-1])
        return f"a {kind} has no such key; {nearest(key, kinds[kind].model_fields)}"
    return None


def _unquoted(error: ErrorDetails) -> str | None:
    """What to do about a value that was meant as a text, and that YAML takes for something else."""
    value = error["input"]
    if error["type"] != "string_type" or not isinstance(value, bool | int | float):
        return None
    if isinstance(value, bool):
        words = "yes, on or true" if value else "no, off or false"
        return f"YAML takes {words} without quotes for {str(value).lower()}; quote it"
    return f"YAML takes {value} without quotes for a number; quote it"


def _samples(task: Task, data: Path) -> Iterator[Sample]:
    try:
        template = JINJA.from_string(task.prompt)
        answer = JINJA.compile_expression(task.answer, undefined_to_none=False)
    except TemplateError as error:
        raise InputError(f"The template of the task {task.task} cannot be read: {error}.") from error
    for count, (number, line) in enumerate(json_lines(data, skip_empty=False)):
        if count == task.samples:
            return
        where = f"{data}:{number}"
        try:
            with limited():
                prompt, found = checked(template.render(line)), answer(line)
            if isinstance(found, StrictUndefined):
                raise UndefinedError(f"{task.answer!r} is undefined")
        except UndefinedError as error:
            there = ", ".join(line) or "nothing"
            raise InputError(f"{where} lacks a field of the template: {error}. It has {there}.") from error
        except (TemplateError, TypeError, ValueError) as error:  # templates are programs
            raise InputError(f"{where} does not go into the template: {error}.") from error
        if not prompt.strip():
            raise InputError(f"{where} makes an empty prompt.")
        yield Sample(number, prompt, _answers(task, found, where))


def _answers(task: Task, found: Any, where: str) -> list[str] | int:
    if isinstance(task, Classification):
        return _choice(task, found, where)
    answers = found if isinstance(found, list) else [found]
    if not answers or not all(isinstance(one, str | int | float) for one in answers):
        raise InputError(f"{where}: the answer {found!r} is neither a text nor a list of texts.")
    return [str(one) for one in answers]


def _choice(task: Classification, found: Any, where: str) -> int:
    names = [choice.strip() for choice in task.choices]
    if isinstance(found, str) and found.strip() in names:
        return names.index(found.strip())
    if isinstance(found, int) and 0 <= found < len(names):
        return int(found)
    raise InputError(f"{where}: the answer {found!r} is none of the choices {', '.join(names)}.")
