"""Token windows: in order or drawn, the same every time, and no more text read than needed."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import dataset
from calibration.dataset import TokenSet, digest_tokens, load_tokens, overlap, pack
from calibration.sources import Document
from compressor.errors import InputError

BOS, EOS = 256, 257


class Listed:
    """A corpus that is a list of documents, and counts how many were taken from it."""

    notes = ()

    def __init__(self, texts, kind="record"):
        self.texts, self.kind, self.taken = texts, kind, 0

    def documents(self, characters):
        for text in self.texts:
            self.taken += 1
            yield Document(text, self.kind) if text else None


def windows(corpus, tokenizer, samples, length, seed=None):
    return pack(corpus, tokenizer, source="list", samples=samples, length=length, seed=seed)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# -- how documents are joined -------------------------------------------------------------------------------------


def test_eos_separates_records_when_the_tokenizer_adds_nothing(byte_tokenizer):
    found = windows(Listed(["ab", "cd"]), byte_tokenizer, 1, 6)
    assert found.tokens.tolist() == [[*ids(byte_tokenizer, "ab"), EOS, *ids(byte_tokenizer, "cd"), EOS]]
    assert found.notes == ("documents are separated by <|end|>",)


def test_the_tokenizers_own_bos_separates_records(bos_tokenizer):
    found = windows(Listed(["ab", "cd"]), bos_tokenizer, 1, 6)
    assert found.tokens.tolist() == [[BOS, *ids(bos_tokenizer, "ab"), BOS, *ids(bos_tokenizer, "cd")]]
    assert found.notes == ("documents are separated by <|begin|>",)


def test_running_text_has_one_bos_at_its_start(bos_tokenizer):
    found = windows(Listed(["ab", "cd"], "running"), bos_tokenizer, 1, 5)
    assert found.tokens.tolist() == [[BOS, *ids(bos_tokenizer, "abcd")]]
    assert found.notes == ("plain text runs on as it stands",)


@pytest.mark.parametrize(
    ("kind", "texts", "found"),
    [
        ("record", ["<|begin|>ab", "cd"], [BOS, "ab", BOS, "cd"]),
        ("running", ["<|begin|>ab", "cd"], [BOS, "abcd"]),
    ],
)
def test_text_that_has_its_bos_gets_no_second_one(bos_tokenizer, kind, texts, found):
    expected = [token for part in found for token in ([part] if part == BOS else ids(bos_tokenizer, part))]
    made = windows(Listed(texts, kind), bos_tokenizer, 1, len(expected))
    assert made.tokens.tolist() == [expected]
    assert made.notes[-1] == "1 texts hold special tokens at their ends already, and get no second ones"


def test_text_that_has_its_eos_gets_no_second_one(byte_tokenizer):
    found = windows(Listed(["ab<|end|>", "cd"]), byte_tokenizer, 1, 6)
    assert found.tokens.tolist() == [[*ids(byte_tokenizer, "ab"), EOS, *ids(byte_tokenizer, "cd"), EOS]]


def test_line_ends_of_windows_are_read_as_those_of_unix(tmp_path, byte_tokenizer):
    for name, content in (("unix.txt", b"ab\ncd\n" * 9), ("windows.txt", b"ab\r\ncd\r\n" * 9)):
        (tmp_path / name).write_bytes(content)
    unix, windows = (
        load_tokens(str(tmp_path / name), byte_tokenizer, samples=None, length=9, seed=None)
        for name in ("unix.txt", "windows.txt")
    )
    assert windows.digest == unix.digest
    assert set(windows.notes) - set(unix.notes) == {"line ends of Windows (CR LF) are read as LF"}


def test_chats_get_nothing_beside_their_template(bos_tokenizer):
    found = windows(Listed(["<|begin|>a<|end|>", "<|begin|>b<|end|>"], "chat"), bos_tokenizer, 1, 6)
    assert found.tokens.tolist() == [[BOS, *ids(bos_tokenizer, "a"), EOS, BOS, *ids(bos_tokenizer, "b"), EOS]]


def test_text_file_in_order_is_the_tokenized_file(tmp_path, byte_tokenizer, monkeypatch):
    text = "".join(f"Paragraph {number} says something.\n \n" for number in range(100))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(dataset, "ORDERED_CHARACTERS", 500)
    found = load_tokens(str(tmp_path / "a.txt"), byte_tokenizer, samples=20, length=64, seed=None)
    assert found.tokens.flatten().tolist() == ids(byte_tokenizer, text)[: 20 * 64]


# -- which windows ------------------------------------------------------------------------------------------------


def numbered(count, characters=40):
    return [f"{number:04} ".ljust(characters, "abcdefghij"[number % 10]) for number in range(count)]


def test_first_windows_read_no_more_than_they_need(byte_tokenizer, monkeypatch):
    monkeypatch.setattr(dataset, "CHARACTERS_PER_CALL", 100)
    corpus = Listed(numbered(10_000))
    found = windows(corpus, byte_tokenizer, 4, 50)
    assert found.tokens.shape == (4, 50)
    assert corpus.taken < 15
    assert found.documents <= corpus.taken


def test_drawn_windows_tokenize_only_a_sample(byte_tokenizer, monkeypatch):
    handed = []
    monkeypatch.setattr(dataset, "_tokenize", spy(dataset._tokenize, handed))
    found = windows(Listed(numbered(20_000)), byte_tokenizer, 4, 50, seed=1)
    assert len(handed) < 200
    assert found.documents == len(handed)
    assert found.notes[-1] == f"{len(handed)} of 20000 documents or passages were sampled"


def spy(function, handed):
    def record(documents, *rest):
        handed.extend(documents)
        return function(list(handed), *rest)

    return record


def test_drawn_windows_come_from_the_whole_source(byte_tokenizer):
    found = windows(Listed(numbered(20_000)), byte_tokenizer, 64, 41, seed=0)
    texts = byte_tokenizer.batch_decode(found.tokens)
    places = sorted(int(text[:4]) if text[:4].isdigit() else 0 for text in texts)
    assert places[-1] > 7000
    assert sum(place > 3000 for place in places) > 8


def test_a_second_reading_when_the_sample_was_too_small(byte_tokenizer, monkeypatch):
    monkeypatch.setattr(dataset, "CHARACTERS_PER_TOKEN", 0.01)
    monkeypatch.setattr(dataset, "POOL", 1)
    corpus = Listed(numbered(300))
    assert windows(corpus, byte_tokenizer, 50, 50, seed=0).tokens.shape == (50, 50)
    assert corpus.taken > 300


@pytest.mark.parametrize("seed", [None, 0])
def test_same_request_same_tokens(byte_tokenizer, seed):
    first, again = (windows(Listed(numbered(500)), byte_tokenizer, 8, 64, seed) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert (first.digest, first.documents, first.notes) == (again.digest, again.documents, again.notes)


def test_another_seed_draws_other_windows(byte_tokenizer):
    first, other = (windows(Listed(numbered(500)), byte_tokenizer, 8, 64, seed) for seed in (0, 1))
    assert first.digest != other.digest


def test_drawn_windows_are_distinct(byte_tokenizer):
    found = windows(Listed(numbered(500)), byte_tokenizer, 100, 64, seed=3)
    assert len({tuple(row) for row in found.tokens.tolist()}) == 100


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 300), st.integers(0, 100))
def test_sample_keeps_the_budget_and_the_order(lengths, budget, seed):
    texts = [Document("x" * length, str(position)) for position, length in enumerate(lengths)]
    found = dataset._sample(texts, budget, seed)
    total = sum(len(document.text) for document in found)
    positions = [int(document.kind) for document in found]
    assert positions == sorted(positions)
    assert total >= min(budget, sum(lengths))
    assert total < budget + 2 * max(lengths) + 1


def test_documents_are_sampled_uniformly():
    texts = [Document("x" * 10, str(position)) for position in range(50)]
    counts = [0] * 50
    for seed in range(400):
        for document in dataset._sample(texts, 100, seed):
            counts[int(document.kind)] += 1
    assert sum(counts) == 4000
    assert 40 < min(counts) < 80 < max(counts) < 130


# -- too little, skipped, wrong -----------------------------------------------------------------------------------


def test_too_little_text_to_draw_from_says_how_much_there_is(tmp_path, byte_tokenizer):
    (tmp_path / "calib.txt").write_text("x" * 37 * 16)
    with pytest.raises(InputError, match=r"^Only 37 windows of 16 tokens in .*calib\.txt, 128 asked\.$") as caught:
        load_tokens(str(tmp_path / "calib.txt"), byte_tokenizer, samples=128, length=16, seed=0)
    assert caught.value.hint == "Give more text, or --samples 37."


@pytest.mark.parametrize(("samples", "found"), [(128, 37), (20, 20), (None, 37)])
def test_in_order_the_number_of_windows_is_a_limit(tmp_path, byte_tokenizer, samples, found):
    (tmp_path / "eval.txt").write_text("x" * (37 * 16 + 5))
    assert (
        len(load_tokens(str(tmp_path / "eval.txt"), byte_tokenizer, samples=samples, length=16, seed=None).tokens)
        == found
    )


@pytest.mark.parametrize("seed", [None, 0])
def test_too_little_text_for_one_window(tmp_path, byte_tokenizer, seed):
    (tmp_path / "calib.txt").write_text("x")
    with pytest.raises(InputError, match="Only 0 windows") as caught:
        load_tokens(str(tmp_path / "calib.txt"), byte_tokenizer, samples=1, length=16, seed=seed)
    assert "samples=0" not in caught.value.hint


@pytest.mark.parametrize(("samples", "length"), [(0, 16), (16, 0), (-1, 16)])
def test_sizes_must_be_positive(byte_tokenizer, samples, length):
    with pytest.raises(InputError, match="at least 1"):
        windows(Listed(["abc"]), byte_tokenizer, samples, length)


def test_empty_documents_are_counted(tmp_path, byte_tokenizer):
    lines = [json.dumps({"text": "some text"}), "", json.dumps({"text": ""}), json.dumps({"text": "more text"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = load_tokens(str(tmp_path / "a.jsonl"), byte_tokenizer, samples=1, length=20, seed=None)
    assert found.documents == 2
    assert found.notes[-1] == "2 empty lines or documents were skipped"


def test_token_set_says_where_it_comes_from(tmp_path, byte_tokenizer):
    (tmp_path / "a.txt").write_text("words " * 100)
    found = load_tokens(str(tmp_path / "a.txt"), byte_tokenizer, samples=3, length=16, seed=0)
    assert found.tokens.dtype == torch.int64
    assert found.tokens.shape == (3, 16)
    assert found.source == str(tmp_path / "a.txt")
    assert found.digest == digest_tokens(found.tokens)


@pytest.mark.parametrize("seed", [None, 0])
def test_every_token_knows_its_document(byte_tokenizer, seed):
    texts = ["a" * 7, "", "b" * 5, "c" * 20, "d" * 9]
    found = windows(Listed(texts), byte_tokenizer, 3, 12, seed)
    letters = ids(byte_tokenizer, "abcd")
    for token, document in zip(found.tokens.flatten(), found.origins.flatten(), strict=True):
        assert token == EOS or letters[document] == token
    assert len(found.origins.unique()) > 1


def test_running_text_does_not_say_where_documents_end(byte_tokenizer):
    assert windows(Listed(["ab", "cd"], "running"), byte_tokenizer, 1, 4).origins is None


def test_digest_knows_values_and_shape():
    tokens = torch.arange(12)
    assert digest_tokens(tokens.view(3, 4)) == digest_tokens(tokens.clone().view(3, 4))
    assert digest_tokens(tokens.view(3, 4)) != digest_tokens(tokens.view(4, 3))
    assert digest_tokens(tokens.view(3, 4)) != digest_tokens(tokens.flip(0).view(3, 4))


# -- overlap ------------------------------------------------------------------------------------------------------


def token_set(rows):
    tokens = torch.tensor(rows)
    return TokenSet(tokens, "", "", 0, ())


def brute_force(calibration, evaluation, n):
    def ngrams(rows):
        return {tuple(row[start : start + n]) for row in rows for start in range(len(row) - n + 1)}

    return len(ngrams(evaluation) & ngrams(calibration)), len(ngrams(evaluation))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**31))
def test_overlap_equals_a_comparison_of_sets(n, vocabulary, seed):
    generator = random.Random(seed)
    calibration, evaluation = (
        [[generator.randrange(vocabulary) for _ in range(length)] for _ in range(4)] for length in (30, 20)
    )
    found = overlap(token_set(calibration), token_set(evaluation), Speller(), n)
    assert (found.shared, found.total) == brute_force(calibration, evaluation, n)


class Speller:
    """A tokenizer that can only spell."""

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def test_overlap_shows_an_example_and_warns():
    generator = random.Random(0)
    calibration, evaluation = ([[generator.randrange(1000) for _ in range(50)]] for _ in range(2))
    evaluation[0][20:40] = calibration[0][5:25]
    found = overlap(token_set(calibration), token_set(evaluation), Speller())
    assert (found.shared, found.total, found.n) == (8, 38, 13)
    assert found.example == " ".join(map(str, calibration[0][5:18]))
    assert found.warning().startswith("21.1% of the evaluation's 13-token sequences are in the calibration text too")


def test_independent_texts_raise_no_warning():
    calibration, evaluation = token_set([list(range(50))]), token_set([list(range(100, 150))])
    found = overlap(calibration, evaluation, Speller())
    assert (found.shared, found.fraction, found.example, found.warning()) == (0, 0.0, None, None)


def test_windows_shorter_than_an_ngram():
    found = overlap(token_set([[1, 2, 3]]), token_set([[1, 2, 3], [4, 5, 6]]), Speller())
    assert (found.shared, found.total, found.n) == (1, 2, 3)
