"""Opening a folder's tokenizer, offline, with a sentence for everything that can be wrong with it."""

from __future__ import annotations

import copy
import json
import socket

import pytest

from compressor.errors import InputError
from compressor.tokenizer import check_vocabulary, default_template, encode_once, load_tokenizer, template_notes
from compressor.writer import copy_companions


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


def test_a_text_that_begins_with_bos_gets_no_second_one(byte_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(byte_tokenizer)
    around = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 256)])
    tokenizer.backend_tokenizer.post_processor = around
    assert encode_once(tokenizer, "<|begin|>a") == encode_once(tokenizer, "a") == tokenizer("a")["input_ids"]


def test_tokens_without_a_row_are_refused_by_name(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    check_vocabulary(tokenizer, 259)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    with pytest.raises(InputError, match=r"token '<tool>' \(259\) has no row in the model's table of 259, and 1 more"):
        check_vocabulary(tokenizer, 259)
    check_vocabulary(tokenizer, 261)
    tokenizer.init_kwargs |= {"image_token": "<tool>", "eoi_token": "</tool>"}  # as Gemma 3 of one billion has it
    check_vocabulary(tokenizer, 259)


def test_named_chat_templates_are_copied(byte_tokenizer, tmp_path):
    tokenizer, out = copy.deepcopy(byte_tokenizer), tmp_path / "out"
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    tokenizer.save_pretrained(tmp_path / "model")
    out.mkdir()
    copy_companions(tmp_path / "model", out)
    assert load_tokenizer(out).chat_template == {"default": "a", "tool_use": "b"}
    assert default_template(tokenizer) == "a"
    assert template_notes(tokenizer) == ["of the chat templates default, tool_use the runtime takes default alone"]
