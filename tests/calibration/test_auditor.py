"""The auditor, each check on text that is made to fail it."""

import json
import re

import pytest
import torch

from calibration.auditor import MARKS, audit, chat_template, duplicates, language_mix, tokens_per_layer
from calibration.dataset import TokenSet
from compressor.checkpoint import Checkpoint

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ENGLISH = "The weather was so cold that the whole family stayed at home and read books by the fire."
GERMAN = "Das Wetter war so kalt, dass die ganze Familie zu Hause blieb und am Feuer Bücher las."


def windows(tokens):
    return TokenSet(tokens, "d", "text.jsonl", 1, ())


class Tokenizer:
    def __init__(self, template=None):
        self.chat_template = template

    def apply_chat_template(self, messages, tokenize):
        from jinja2 import Template

        assert not tokenize
        return Template(self.chat_template).render(messages=messages)

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_fewer_tokens_than_inputs_are_named_with_their_layer(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    widest = max(shape[1] for shape in architecture.linears().values())
    enough = tokens_per_layer(windows(torch.zeros(1, widest, dtype=torch.long)), architecture)
    assert enough.outcome == "ok"
    assert set(enough.figures["layers"].values()) == {widest}
    short = tokens_per_layer(windows(torch.zeros(1, widest - 1, dtype=torch.long)), architecture)
    assert short.outcome == "warning"
    assert all(architecture.linears()[name][1] == widest for name in short.figures["short"])


def test_duplicates_are_counted_over_windows():
    tokens = torch.randperm(4000)[: 20 * 64].reshape(20, 64)
    assert duplicates(windows(tokens)).outcome == "ok"
    tokens[5] = tokens[3]
    found = duplicates(windows(tokens))
    assert found.outcome == "warning"
    assert found.figures["equal_windows"] == 1
    assert found.figures["share"] == pytest.approx(1 / 19)


def test_languages_are_told_apart(languages):
    assert language_mix([ENGLISH, ENGLISH, ENGLISH, GERMAN]) == {"en": 0.75, "de": 0.25}


@pytest.mark.parametrize(
    ("template", "text", "outcome", "said"),
    [
        (CHATML, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>", "ok", "100% of the windows"),
        (CHATML, ENGLISH, "warning", "give `messages`"),
        (CHATML, f"{MARKS['Llama 2 or Mistral']} Hi [/INST] Yes", "warning", "Llama 2 or Mistral in 100%"),
        (None, ENGLISH, "ok", "the model has none"),
        (None, "<start_of_turn>user\nHi", "warning", "Gemma in 100%"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ENGLISH, "not checked", "puts nothing between"),
        (PLAIN, "user: a\nassistant: b", "ok", "'assistant:'"),
    ],
)  # fmt: skip
def test_the_layout_has_to_be_the_models_own(template, text, outcome, said):
    found = chat_template([text], Tokenizer(template))
    assert found.outcome == outcome, found.said
    assert said in found.said


def test_what_cannot_be_checked_is_no_success(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    found = {
        one.name: one for one in audit(windows(torch.arange(512).reshape(2, 256)), None, Tokenizer(), architecture)
    }
    assert found["overlap"].outcome == "not checked"
    assert found["languages"].outcome == "not checked"
    assert "llmc-compiler[audit]" in found["languages"].said


@pytest.fixture
def texts(tmp_path):
    lines = [f"{ENGLISH} This happened on day {number} of the year {1900 + number}." for number in range(200)]
    (tmp_path / "calibration.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[:50]))
    return tmp_path / "calibration.jsonl", tmp_path / "evaluation.jsonl"


def test_strict_fails_closed(llmc, tiny_model, texts):
    words = ("audit", texts[0], "--model", tiny_model("llama"), "--length", 64, "--samples", 8, "--eval-length", 64)
    assert llmc(*words)[0] == 0
    code, shown, _ = llmc(*words, "--strict", "--json", "--eval", texts[1])
    assert code == 1
    found = json.loads(shown)
    assert not found["passed"]
    outcomes = {one["name"]: one["outcome"] for one in found["checks"]}
    assert outcomes["overlap"] == outcomes["duplicates"] == "warning"


def test_text_that_cannot_be_read_is_bad_input(llmc, tiny_model, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Bücher".encode("latin-1"))
    code, _, said = llmc("audit", tmp_path / "latin.txt", "--model", tiny_model("llama"))
    assert code == 2
    assert "is not UTF-8" in said


def test_all_of_a_short_text_is_audited_unless_a_number_of_windows_was_asked(llmc, tiny_model, texts):
    words = ("audit", texts[0], "--model", tiny_model("llama"), "--json")
    code, _, said = llmc(*words, "--samples", 128)
    assert code == 2
    windows = int(re.search(r"Only (\d+) windows of 512 tokens", said)[1])
    assert f"or --samples {windows}." in said
    code, shown, _ = llmc(*words)
    assert code == 0
    assert (
        next(one for one in json.loads(shown)["checks"] if one["name"] == "tokens")["figures"]["tokens"]
        == windows * 512
    )
