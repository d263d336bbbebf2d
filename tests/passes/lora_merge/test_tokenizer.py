"""An adapter's chat template and new tokens are the merged model's, unless the base's are asked for."""

import json
import shutil

import pytest
from merging import merge
from peft import LoraConfig
from transformers import AutoTokenizer

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.registry import make_pass
from compressor.tokenizer import tokenizer_of

LORA = LoraConfig(r=4, target_modules=["q_proj"])
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def give_tokenizer(root, adapter, tokens=("<|tool|>", "<|user|>"), template=TEMPLATE):
    """Save the base's tokenizer with more tokens and another template beside the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(root)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(adapter)
    return tokenizer


@pytest.fixture
def pair(tiny_model, adapter_of):
    """A base, and an adapter for it without a tokenizer."""
    root = tiny_model("llama")
    return root, adapter_of(root, LORA)


def test_what_the_adapter_brings_is_the_models(pair, tmp_path):
    root, adapter = pair
    given = give_tokenizer(root, adapter)
    one = make_pass("lora-merge", {"adapter": [str(adapter)]})
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    for found in (AutoTokenizer.from_pretrained(result.root), tokenizer_of(one.original(Checkpoint.open(root)))):
        assert found.chat_template == TEMPLATE
        assert found("a<|tool|>b")["input_ids"] == given("a<|tool|>b")["input_ids"]
        assert found.convert_tokens_to_ids("<|user|>") == 260
    (said,) = [note for note in notes if note.startswith(f"tokenizer of {adapter}")]
    assert "2 new tokens (<|tool|>, <|user|>), its chat template; --tokenizer base keeps" in said
    assert (result.root / "generation_config.json").is_file()


def test_named_chat_templates_travel_with_it(pair, tmp_path):
    root, adapter = pair
    give_tokenizer(root, adapter)
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates" / "tools.jinja").write_text("tools")
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert (result.root / "additional_chat_templates" / "tools.jinja").read_text() == "tools"
    assert AutoTokenizer.from_pretrained(result.root).chat_template == {"default": TEMPLATE, "tools": "tools"}


def test_the_bases_own_is_kept_if_asked_for(pair, tmp_path):
    root, adapter = pair
    keys = [make_pass("lora-merge", {"adapter": [str(adapter)]}).key]
    give_tokenizer(root, adapter)
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)], tokenizer="base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (result.root / name).read_bytes() == (root / name).read_bytes()
    assert not [note for note in notes if note.startswith("tokenizer")]
    keys += [make_pass("lora-merge", {"adapter": [str(adapter)], "tokenizer": name}).key for name in ("base", "auto")]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_alone(pair, tmp_path, where):
    root, adapter = pair
    if where == "chat_template.jinja":
        (adapter / where).write_text(TEMPLATE)
    else:
        config = json.loads((root / where).read_text()) | {"chat_template": TEMPLATE}
        (adapter / where).write_text(json.dumps(config))
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    found = AutoTokenizer.from_pretrained(result.root)
    assert found.chat_template == TEMPLATE and found("abc")["input_ids"] == [64, 65, 66]
    assert any("no new tokens, its chat template" in note for note in notes)


def test_a_tokenizer_above_the_folder_of_the_adapter(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter_of(root, LORA, name="trained/default")
    (tmp_path / "trained" / "chat_template.jinja").write_text(TEMPLATE)
    result, notes = merge(root, tmp_path / "out", adapter=[str(tmp_path / "trained")])
    assert AutoTokenizer.from_pretrained(result.root).chat_template == TEMPLATE
    assert "trained, in its folder default, is a LoRA" in notes[0]


def test_the_same_files_are_not_worth_a_note(pair, tmp_path):
    root, adapter = pair
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(root / name, adapter)
    _, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert not [note for note in notes if note.startswith("tokenizer")]


def test_an_adapter_without_a_tokenizer_has_none_to_take(pair, tmp_path):
    root, adapter = pair
    with pytest.raises(InputError, match="brings no tokenizer and no chat template"):
        merge_original(root, adapter=[str(adapter)], tokenizer="adapter")


def test_adapters_with_different_tokenizers(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapters = [adapter_of(root, LORA, name) for name in ("a", "b", "c")]
    for adapter, template in zip(adapters, (TEMPLATE, TEMPLATE + "!", TEMPLATE), strict=True):
        give_tokenizer(root, adapter, template=template)
    with pytest.raises(InputError, match=r"bring different tokenizers \(chat_template\.jinja\)") as raised:
        merge_original(root, adapter=[str(one) for one in adapters[:2]])
    assert "--tokenizer base" in raised.value.hint
    alike = merge_original(root, adapter=[str(one) for one in adapters[::2]])
    assert tokenizer_of(alike).chat_template == TEMPLATE


def test_a_token_without_a_row(pair):
    root, adapter = pair
    give_tokenizer(root, adapter, [f"<|{number}|>" for number in range(40)])
    with pytest.raises(
        InputError, match=r"has the token '<\|29\|>' with the number 288, and the embedding has 288 rows"
    ):
        merge_original(root, adapter=[str(adapter)])
    assert merge_original(root, adapter=[str(adapter)], tokenizer="base").architecture.vocab_size == 288


def merge_original(root, **options):
    """The fine-tuned model that a plan is made for."""
    return make_pass("lora-merge", options).original(Checkpoint.open(root))
