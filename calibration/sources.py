"""Where text comes from: plain text, JSON lines, parquet files and datasets, read as a stream of documents."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressor import templates
from compressor.errors import InputError, MissingExtra, first_line
from compressor.json_lines import check_characters

# Datasets whose rows are lines of one running text. The literature joins them with a blank line.
RUNNING_DATASETS = ("wikitext", "Salesforce/wikitext")
COLUMNS = ("messages", "text")
CRLF = "line ends of Windows (CR LF) are read as LF"
# Keys of an instruction and its answer, as sets for fine-tuning have them; `input` goes behind the instruction.
INSTRUCTIONS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
INPUT = "input"
LONGEST_FIELD = 1 << 24  # characters of a cell
KINDS = ".txt, .csv, .jsonl or .parquet"
SPLIT = re.compile(r"(train|test|validation|valid|dev|eval)\b.*")


@dataclass(frozen=True)
class Document:
    """One text. `kind` says how it joins its neighbours: "running", "record", "chat" or "instruction"."""

    text: str
    kind: str


class Corpus(Protocol):
    """A source of documents that can be read more than once. None stands for an empty one that was skipped.

    Attributes:
        notes: what there is to say of what was read so far.
    """

    @property
    def notes(self) -> tuple[str, ...]: ...

    def documents(self, characters: int) -> Iterator[Document | None]:
        """Documents in order; running text comes in pieces of about `characters`."""
        ...


def open_corpus(source: str, tokenizer: Any, *, allow_network: bool = True) -> Corpus:
    """The documents behind a path or a dataset id.

    Raises:
        InputError: there is no such file, or its kind cannot be read.
    """
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if path.is_file():
        if reader is None:
            raise InputError(f"{path} is not a {KINDS} file.")
        return reader(path, tokenizer)
    if path.is_dir():
        raise InputError(f"{source} is a folder, not a file of text.", f"Give a {KINDS} file.")
    if reader is not None or path.exists() or source.startswith((".", "/", "~")):
        raise InputError(f"There is no file {source}.")
    return Dataset(source, tokenizer, allow_network)


@dataclass
class TextFile:
    """Plain text in UTF-8. Pieces end at a blank line where there is one, else at the end of a line or word."""

    path: Path
    tokenizer: Any
    notes: tuple[str, ...] = ()

    def documents(self, characters: int) -> Iterator[Document | None]:
        return running_pieces(self._read(characters), characters)

    def _read(self, characters: int) -> Iterator[str]:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
        with self.path.open("rb") as file:
            try:
                while chunk := file.read(characters):
                    yield decoder.decode(chunk)
                yield decoder.decode(b"", final=True)
                if "\r\n" in (decoder.newlines or ()):
                    self.notes = (CRLF,)
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{self.path} (before byte {file.tell()})") from error


def running_pieces(texts: Iterable[str], characters: int) -> Iterator[Document | None]:
    """The joined `texts`, cut into pieces of at most `characters`."""
    rest = ""
    for text in texts:
        rest += text
        while len(rest) > characters:
            cut = _boundary(rest, characters)
            yield _running(rest[:cut])
            rest = rest[cut:]
    if rest:
        yield _running(rest)


def _running(text: str) -> Document | None:
    return Document(text, "running") if text.strip() else None


def _boundary(text: str, limit: int) -> int:
    """Where to cut `text` below `limit`: after the last blank line of its second half, or line, or word."""
    half = limit // 2
    for pattern in (r"\n[ \t\r]*\n", r"\n", r"(?=\s)"):
        ends = [match.end() for match in re.finditer(pattern, text[half:limit])]
        if ends and ends[-1]:
            return half + ends[-1]
    return limit


@dataclass(frozen=True)
class _Records:
    """Texts that are kept as they are."""

    @property
    def notes(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class JsonLines(_Records):
    """One JSON object a line, with `text`, `messages`, or an instruction and its answer."""

    path: Path
    tokenizer: Any

    def documents(self, characters: int) -> Iterator[Document | None]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{self.path}:{number}"
                yield _record(_parse(line, where), self.tokenizer, where) if line.strip() else None


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(where) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg} at column {error.colno}).") from error
    except (ValueError, RecursionError) as error:  # a number, or values in values, without end
        raise InputError(f"{where} is not JSON that can be read.") from error


def _record(record: Any, tokenizer: Any, where: str) -> Document | None:
    """The document of a JSON line, or of a row of a table; null is none, as an empty text is."""
    if not isinstance(record, Mapping):
        raise _no_text(record, where)
    if isinstance(messages := record.get("messages"), list):
        return _document(render_chat(messages, tokenizer, where), "chat", where) if messages else None
    if isinstance(text := record.get("text"), str):
        return _document(text, "record", where) if text.strip() else None
    if chat := _instruction(record):
        return _document(render_chat(chat, tokenizer, where), "instruction", where)
    known = [record[name] for name in COLUMNS if name in record]
    if (known and all(value is None for value in known)) or any(_is_empty(record, pair) for pair in INSTRUCTIONS):
        return None
    raise _no_text(record, where)


def _instruction(record: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """An instruction and its answer as a chat."""
    for asked, answered in INSTRUCTIONS:
        question, answer, more = (record.get(key) for key in (asked, answered, INPUT))
        if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
            whole = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
            return [{"role": "user", "content": whole}, {"role": "assistant", "content": answer}]
    return None


def _is_empty(record: Mapping[str, Any], pair: tuple[str, str]) -> bool:
    """Whether it has both keys, and nothing in one of them."""
    values = [record.get(key) for key in pair]
    told = all(key in record for key in pair) and all(value is None or isinstance(value, str) for value in values)
    return told and not all(value and value.strip() for value in values)


def _document(text: str, kind: str, where: str) -> Document:
    check_characters(text, where)
    return Document(text, kind)


def _no_text(record: Any, where: str) -> InputError:
    there = f"; it has {', '.join(map(str, record))}" if isinstance(record, Mapping) and record else ""
    return InputError(
        f"{where} has neither `text` (a string) nor `messages` (a list){there}.",
        "An instruction and its answer are taken too: " + ", ".join(" and ".join(pair) for pair in INSTRUCTIONS) + ".",
    )


def render_chat(messages: list[Any], tokenizer: Any, where: str) -> str:
    """A chat as the text that the tokenizer's own chat template makes of it.

    Raises:
        InputError: the tokenizer has no chat template, a message is incomplete, or the template rejects it;
            names `where`.
    """
    if not all(_is_message(message) for message in messages):
        raise InputError(f"{where}: every message needs a `role` and a `content`.")
    if not tokenizer.chat_template:
        raise InputError(
            f"{where} is a chat, but the model's tokenizer has no chat template.", "Give `text` instead of `messages`."
        )
    return templates.render_chat(tokenizer, [_plain(message, where) for message in messages], where)


def _plain(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message whose content is text; parts, as OpenAI's API has them, are joined by line ends.

    Raises:
        InputError: a part is something other than text.
    """
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    return {**message, "content": "\n".join(_text_of(part, where) for part in parts)}


def _text_of(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise InputError(f"{where}: a message has a part of type {kind!r}, and only text can be read.")
    return text


def _is_message(message: Any) -> bool:
    # Templates print what is missing as nothing, or as "None".
    is_chat = isinstance(message, Mapping) and isinstance(message.get("role"), str)
    return is_chat and (message.get("content") is not None or bool(message.get("tool_calls")))


def _not_utf8(where: str) -> InputError:
    return InputError(f"{where} is not UTF-8 text.", "Convert it, for example with `iconv -t utf-8`.")


@dataclass(frozen=True)
class ParquetFile(_Records):
    """A parquet file with a column `text` or `messages`."""

    path: Path
    tokenizer: Any

    def documents(self, characters: int) -> Iterator[Document | None]:
        for number, row in enumerate(self._rows(), start=1):
            yield _record(row, self.tokenizer, f"{self.path}, row {number}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        from pyarrow import ArrowException, parquet

        try:
            file = parquet.ParquetFile(self.path)
            columns = _columns(file.schema_arrow.names, str(self.path))
            for batch in file.iter_batches(batch_size=64, columns=columns):
                yield from batch.to_pylist()
        except (ArrowException, OSError, UnicodeDecodeError) as error:  # damage beyond the headers has many names
            raise InputError(f"{self.path} is damaged or not a parquet file ({first_line(error)}).") from error


def _columns(names: Iterable[str], where: str) -> list[str]:
    """The columns of a table that its text is in."""
    there = list(names)
    for column in COLUMNS:
        if column in there:
            return [column]
    for pair in INSTRUCTIONS:
        if set(pair) <= set(there):
            return [*pair, *({INPUT} & set(there))]
    raise InputError(f"{where} has no column `text` or `messages`; it has {', '.join(there)}.")


@dataclass(frozen=True)
class CsvFile(_Records):
    """A table in UTF-8 with a line of names: a column `text`, or those of an instruction and its answer."""

    path: Path
    tokenizer: Any

    def documents(self, characters: int) -> Iterator[Document | None]:
        csv.field_size_limit(LONGEST_FIELD)
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            try:
                columns = _columns([name for name in rows.fieldnames or () if name], str(self.path))
                for row in rows:
                    values = {name: row[name] for name in columns}
                    yield _record(values, self.tokenizer, f"{self.path}:{rows.line_num}")
            except UnicodeDecodeError as error:
                raise _not_utf8(str(self.path)) from error
            except csv.Error as error:
                raise InputError(f"{self.path}:{rows.line_num + 1} is not CSV ({error}).") from error


@dataclass(frozen=True)
class Dataset(_Records):
    """A dataset `name[:config][:split]` of the `datasets` package; the split is `train` unless given.

    It is downloaded whole into the local cache, from which rows are read without loading it into memory.
    """

    source: str
    tokenizer: Any
    allow_network: bool

    def documents(self, characters: int) -> Iterator[Document | None]:
        name, config, split = parse_dataset_id(self.source)
        dataset = self._load(name, config, split)
        if name in RUNNING_DATASETS:
            yield from running_pieces((row["text"] + "\n\n" for row in dataset), characters)
            return
        columns = _columns(dataset.column_names, self.source)
        for number, row in enumerate(dataset.select_columns(columns), start=1):
            yield _record(row, self.tokenizer, f"{self.source}, row {number}")

    def _load(self, name: str, config: str | None, split: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise MissingExtra("datasets", "data", f"Reading the dataset {name}") from error
        try:
            with nullcontext() if self.allow_network else _offline():
                return datasets.load_dataset(name, config, split=split)
        except Exception as error:  # a dozen kinds, from several packages
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"{self.source} is not a file, and the dataset cannot be loaded: {reason}",
                f"Give a {KINDS} file, or check the id and the network.",
            ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """No requests to the hub inside the block; datasets come from the local cache."""
    import datasets
    from huggingface_hub import constants

    switches: tuple[Any, ...] = (datasets.config, constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def parse_dataset_id(source: str) -> tuple[str, str | None, str]:
    """(name, config, split) of `name[:config][:split]`; a lone second part is a split if it reads like one."""
    name, *rest = re.split(r":(?![^\[]*\])", source)  # not inside a slice such as train[:10%]
    if len(rest) > 2 or not name:
        raise InputError(f"{source} is neither a file nor a dataset id `name[:config][:split]`.")
    if len(rest) == 2:
        return name, rest[0], rest[1]
    if rest and SPLIT.fullmatch(rest[0]):
        return name, None, rest[0]
    return name, (rest[0] if rest else None), "train"


READERS: dict[str, Callable[[Path, Any], Corpus]] = {
    ".txt": TextFile,
    ".csv": CsvFile,
    ".jsonl": JsonLines,
    ".parquet": ParquetFile,
}
