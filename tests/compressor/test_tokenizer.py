"""Opening a folder's tokenizer, offline, with a sentence for everything that can be wrong with it."""

from __future__ import annotations

import json
import socket

import pytest

from compressor.errors import InputError
from compressor.tokenizer import load_tokenizer


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a tokenizer was looked up on the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_tokenizer_of_a_folder(tiny_model, byte_tokenizer, no_network, family):
    tokenizer = load_tokenizer(tiny_model(family))
    assert tokenizer("héllo 12")["input_ids"] == byte_tokenizer("héllo 12")["input_ids"]
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|end|>", byte_tokenizer.chat_template)


def test_folder_without_a_tokenizer(tiny_model):
    root = tiny_model("llama")
    (root / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(root)


def test_damaged_tokenizer(tiny_model):
    root = tiny_model("llama")
    (root / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match="cannot be opened"):
        load_tokenizer(root)


def test_damaged_configuration(tiny_model):
    root = tiny_model("llama")
    (root / "tokenizer.json").rename(root / "vocab.json")
    (root / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(root)


def test_code_is_run_only_when_trusted(tiny_model):
    root = tiny_model("llama")
    (root / "tokenizer.json").unlink()
    config = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="runs code of its own"):
        load_tokenizer(root)


def test_code_beside_a_tokenizer_json_is_not_run(tiny_model, byte_tokenizer):
    root = tiny_model("llama")
    config = json.loads((root / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "tokenization_own.py").write_text("raise SystemExit('ran')")
    assert load_tokenizer(root)("a")["input_ids"] == byte_tokenizer("a")["input_ids"]
