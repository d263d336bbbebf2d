"""Reading documents: what each kind of file gives, and what is said about one that cannot be read."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from calibration.sources import Document, open_corpus, parse_dataset_id, render_chat, running_pieces
from compressor.errors import InputError, MissingExtra

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
RENDERED = "<|begin|>user\nhi<|end|><|begin|>assistant\nhello<|end|>"


def documents(source, tokenizer, characters=1000):
    return list(open_corpus(str(source), tokenizer).documents(characters))


# -- tables, instructions and what ends in a sentence ---------------------------------------------------------------


ASKED = [{"role": "user", "content": "Add\n\n1 and 2"}, {"role": "assistant", "content": "3"}]
RECORDS = [
    {"instruction": "Add", "input": "1 and 2", "output": "3"},
    {"instruction": "Add\n\n1 and 2", "output": "3", "input": None},
    {"prompt": "Add\n\n1 and 2", "completion": "3"},
    {"prompt": "Add\n\n1 and 2", "response": "3"},
]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_instruction_and_its_answer_are_a_chat(tmp_path, byte_tokenizer, kind, record):
    file = write_table(tmp_path / f"a.{kind}", [record])
    expected = render_chat(ASKED, byte_tokenizer, "here")
    assert documents(file, byte_tokenizer) == [Document(expected, "instruction")]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_empty_answers_are_skipped_in_every_kind_of_file(tmp_path, byte_tokenizer, kind):
    file = write_table(
        tmp_path / f"a.{kind}", [{"instruction": "a", "output": ""}, {"instruction": "a", "output": "b"}]
    )
    assert [one is None for one in documents(file, byte_tokenizer)] == [True, False]


@pytest.mark.parametrize("name", ["a.CSV", "a.Csv"])
def test_a_table_with_a_column_of_text(tmp_path, byte_tokenizer, name):
    (tmp_path / name).write_bytes('\ufeffid,text\r\n1,"two\r\nlines, ""quoted"" 你好"\r\n2,\r\n'.encode())
    assert documents(tmp_path / name, byte_tokenizer) == [Document('two\r\nlines, "quoted" 你好', "record"), None]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"id,words\n1,a\n", "no column `text` or `messages`; it has id, words"), (b"text\n\"a\" b\n", ":2 is not CSV"),
     (b"text\ncaf\xe9\n", "is not UTF-8 text"), (b"", "no column")],
)  # fmt: skip
def test_a_table_that_cannot_be_read(tmp_path, byte_tokenizer, content, says):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        documents(tmp_path / "a.csv", byte_tokenizer)


@pytest.mark.parametrize("name", ["a.TXT", "a.JSONL", "a.Parquet"])
def test_capitals_in_the_names_of_files(tmp_path, byte_tokenizer, name):
    file = tmp_path / name
    if name == "a.TXT":
        file.write_text("words", encoding="utf-8")
    else:
        write_table(tmp_path / name.lower(), [{"text": "words"}]).rename(file)
    assert [one.text for one in documents(file, byte_tokenizer)] == ["words"]


@pytest.mark.parametrize(
    "line", [{"text": "half \ud83d"}, {"messages": [{"role": "user", "content": "\udc00"}]}, {"text": "a\ud800b"}]
)
def test_half_of_a_character_ends_in_one_sentence(tmp_path, byte_tokenizer, line):
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl:1 holds .u(d83d|dc00|d800), which is half of a character"):
        documents(tmp_path / "a.jsonl", byte_tokenizer)


def write_table(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


# -- plain text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("characters", [10, 50, 1000])
@pytest.mark.parametrize(
    "text", ["para one\n\npara two, a bit longer\n \nthird\n", "x" * 300, "naïve 你好 🙂 " * 40, "line\n" * 60]
)
def test_pieces_of_text_join_to_the_file(tmp_path, byte_tokenizer, text, characters):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = documents(tmp_path / "a.txt", byte_tokenizer, characters)
    assert "".join(document.text for document in found) == text
    assert all(document.kind == "running" and len(document.text) <= characters for document in found)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one two three\n\nfour five\nsix seven", "one two three\n\n"),
        ("one two three\nfour five six seven", "one two three\n"),
        ("one two three four five six seven", "one two three four"),
        ("onetwothreefourfivesixseven", "onetwothreefourfivesi"),
    ],
)
def test_text_is_cut_where_it_hurts_least(text, first):
    assert next(running_pieces([text], 21)).text == first


def test_byte_order_mark_is_no_text(tmp_path, byte_tokenizer):
    (tmp_path / "a.txt").write_text("abc", encoding="utf-8-sig")
    assert documents(tmp_path / "a.txt", byte_tokenizer) == [Document("abc", "running")]


@pytest.mark.parametrize("content", [b"caf\xe9 and more", "text".encode("utf-16"), b"cut \xf0\x9f"])
def test_text_that_is_not_utf8(tmp_path, byte_tokenizer, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.txt .*is not UTF-8") as caught:
        documents(tmp_path / "a.txt", byte_tokenizer)
    assert "iconv" in caught.value.hint


def test_empty_text_is_no_document(tmp_path, byte_tokenizer):
    (tmp_path / "a.txt").write_text("\n \n")
    assert documents(tmp_path / "a.txt", byte_tokenizer) == [None]


# -- JSON lines ---------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path, byte_tokenizer):
    lines = [
        '{"text": "one"}',
        "",
        json.dumps({"messages": CHAT}),
        '{"text": "  "}',
        '{"text": "größe", "id": 3}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert documents(tmp_path / "a.jsonl", byte_tokenizer) == [
        Document("one", "record"), None, Document(RENDERED, "chat"), None, Document("größe", "record")]  # fmt: skip


def test_null_is_an_empty_document_in_every_format(tmp_path, byte_tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"messages": null, "text": null}\n')
    assert documents(tmp_path / "a.jsonl", byte_tokenizer) == [Document("one", "record"), None, None]
    write_parquet(tmp_path / "a.parquet", {"text": ["one", None, None]})
    assert documents(tmp_path / "a.parquet", byte_tokenizer) == [Document("one", "record"), None, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"content": "x", "id": null}', r"neither `text`.*; it has content, id\."),
        ('{"text": 3}', "neither `text`"),
        ('{"messages": "x"}', "neither `text`"),
        ('"text"', "neither `text`"),
        ('{"text": "x"', "is not JSON"),
        (b'{"text": "\xe9"}', "is not UTF-8"),
        ('{"messages": [{"role": "user", "content": "x"}, 3]}', "needs a `role` and a `content`"),
        ('{"messages": [{"content": "x"}]}', "needs a `role` and a `content`"),
        ('{"messages": [{"role": "user", "content": null}]}', "needs a `role` and a `content`"),
    ],
)
def test_line_that_cannot_be_used_is_named(tmp_path, byte_tokenizer, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line)
    with pytest.raises(InputError, match=rf"a\.jsonl:3.*{message}"):
        documents(tmp_path / "a.jsonl", byte_tokenizer)


def test_parts_of_a_message_are_text(byte_tokenizer):
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]
    chat = [{"role": "user", "content": parts}, CHAT[1]]
    assert render_chat(chat, byte_tokenizer, "here") == RENDERED.replace("hi", "hi\nthere")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}]
    with pytest.raises(InputError, match=r"^here: a message has a part of type 'image_url', and only text can be read"):
        render_chat(image, byte_tokenizer, "here")


def test_chat_needs_a_template(byte_tokenizer):
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"calib\.jsonl:1 is a chat, but .* no chat template"):
        render_chat(CHAT, tokenizer, "calib.jsonl:1")


def test_chat_that_the_template_rejects(byte_tokenizer):
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"calib\.jsonl:1: .* rejects the messages \(roles must alternate\)"):
        render_chat(CHAT, tokenizer, "calib.jsonl:1")


# -- parquet ------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, columns):
    from pyarrow import parquet, table

    parquet.write_table(table(columns), path)


def test_parquet_with_text(tmp_path, byte_tokenizer):
    write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3, 4], "text": ["one", None, "", "two"]})
    assert documents(tmp_path / "a.parquet", byte_tokenizer) == [
        Document("one", "record"), None, None, Document("two", "record")]  # fmt: skip


def test_parquet_with_messages(tmp_path, byte_tokenizer):
    write_parquet(tmp_path / "a.parquet", {"messages": [CHAT]})
    assert documents(tmp_path / "a.parquet", byte_tokenizer) == [Document(RENDERED, "chat")]


def test_parquet_without_either(tmp_path, byte_tokenizer):
    write_parquet(tmp_path / "a.parquet", {"prompt": ["x"], "answer": ["y"]})
    with pytest.raises(InputError, match="no column `text` or `messages`; it has prompt, answer"):
        documents(tmp_path / "a.parquet", byte_tokenizer)


def test_truncated_parquet(tmp_path, byte_tokenizer):
    write_parquet(tmp_path / "a.parquet", {"text": ["x"]})
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged or not a parquet file"):
        documents(tmp_path / "a.parquet", byte_tokenizer)


def test_missing_package_is_named(byte_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="needs the package datasets") as caught:
        documents("org/name", byte_tokenizer)
    assert "[data]" in caught.value.hint


# -- datasets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:test", ("org/name", None, "test")),
        ("org/name:train[:10%]", ("org/name", None, "train[:10%]")),
        ("org/name:en:test[5:10]", ("org/name", "en", "test[5:10]")),
        ("org/name:en", ("org/name", "en", "train")),
        ("wikitext:wikitext-2-raw-v1:validation", ("wikitext", "wikitext-2-raw-v1", "validation")),
    ],
)
def test_dataset_ids(source, parts):
    assert parse_dataset_id(source) == parts


def test_dataset_id_with_too_many_parts():
    with pytest.raises(InputError, match="neither a file nor a dataset id"):
        parse_dataset_id("org/name:a:b:c")


@pytest.fixture
def local_dataset(monkeypatch):
    """Replaces the download by the rows given: `local_dataset({column: values})`."""
    import datasets

    def serve(columns):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(columns))

    return serve


def test_rows_of_a_dataset_are_records(local_dataset, byte_tokenizer):
    local_dataset({"text": ["one", "", None, "two"], "id": [1, 2, 3, 4]})
    assert documents("org/name", byte_tokenizer) == [Document("one", "record"), None, None, Document("two", "record")]


def test_lines_of_wikitext_run_on(local_dataset, byte_tokenizer):
    local_dataset({"text": ["", " = Title = \n", " Some text . \n"]})
    found = documents("wikitext:wikitext-2-raw-v1:test", byte_tokenizer)
    assert found == [Document("\n\n = Title = \n\n\n Some text . \n\n\n", "running")]


def test_dataset_that_cannot_be_loaded(byte_tokenizer, monkeypatch):
    import datasets
    from huggingface_hub import constants

    def fail(*_, **__):
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"cannot be loaded: Couldn't reach the Hub$"):
        list(open_corpus("org/name", byte_tokenizer, allow_network=False).documents(100))
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("source", ["absent.txt", "./org/name", "/no/such/thing", "absent.parquet"])
def test_absent_file_is_not_looked_up_as_a_dataset(source, byte_tokenizer):
    with pytest.raises(InputError, match="There is no file"):
        open_corpus(source, byte_tokenizer)


def test_other_kinds_of_file(tmp_path, byte_tokenizer):
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(InputError, match=r"not a \.txt, \.csv, \.jsonl or \.parquet file"):
        open_corpus(str(tmp_path / "a.doc"), byte_tokenizer)
    with pytest.raises(InputError, match=r"is a folder, not a file of text"):
        open_corpus(str(tmp_path), byte_tokenizer)
