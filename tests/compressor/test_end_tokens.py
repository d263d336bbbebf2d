"""Which tokens end a text: transformers.generate is the judge."""

import copy
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor.architecture import read_config, resolve
from compressor.end_tokens import EndTokens, turn_end
from compressor.errors import InputError
from compressor.tasks.scoring import Prompter


@pytest.fixture(scope="module")
def root(tmp_path_factory, byte_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("ends") / "model"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=288, **shape)).save_pretrained(root)
    byte_tokenizer.save_pretrained(root)
    return root


def named(root, generation, config):
    """The folder with these in its two files; None takes a file, or a key, away."""
    path, values = root / "generation_config.json", json.loads((root / "config.json").read_text())
    values.pop("eos_token_id", None)
    (root / "config.json").write_text(json.dumps(values | ({} if config is None else {"eos_token_id": config})))
    path.unlink(missing_ok=True)
    if generation is not None:
        path.write_text(json.dumps(generation))
    return EndTokens.of(root, AutoTokenizer.from_pretrained(root))


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        (None, [2, 17]),
        (None, 17),
        ({"eos_token_id": 5}, [2, 17]),
        ({"eos_token_id": [257, 5]}, 2),
    ],
)
def test_as_transformers_decides(root, generation, config):
    found = named(root, generation, config)
    theirs = AutoModelForCausalLM.from_pretrained(root).generation_config.eos_token_id
    assert list(found.ids) == (theirs if isinstance(theirs, list) else [theirs])


def test_prompts_of_tasks_and_of_lm_eval_end_there(root, byte_tokenizer):
    named(root, None, [2, 17])
    assert Prompter.of(byte_tokenizer, root, resolve(read_config(root))).ends == {2, 17}


def test_those_of_a_gguf_file(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, token in (("eos", 2), ("eot", 7), ("eom", 2)):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert EndTokens.of(tmp_path, None) == EndTokens((2, 7), "model.gguf")


@pytest.mark.parametrize("generation", [{}, {"eos_token_id": None}])
def test_where_transformers_would_not_stop(root, byte_tokenizer, generation):
    assert named(root, generation, [17]) == EndTokens((17,), "config.json")
    values = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(values | {"eos_token_id": None}))
    ends = EndTokens.of(root, byte_tokenizer)
    assert ends == EndTokens((257,), "the tokenizer")
    assert ends.notes(byte_tokenizer)[0].endswith("no token that ends a text; the tokenizer's own is taken, <|end|>")


def test_another_end_of_the_tokenizer_is_noted(root, byte_tokenizer):
    assert named(root, {"eos_token_id": [257, 5]}, None).notes(byte_tokenizer) == []
    assert named(root, {"eos_token_id": [256]}, None).notes(byte_tokenizer) == [
        "a text ends at <|begin|>, as generation_config.json says, and not at the tokenizer's <|end|>; some runtimes "
        "stop there too"
    ]


def test_a_turn_that_ends_where_nothing_says_so_is_noted(root, byte_tokenizer):
    """A fine-tune with `<|im_end|>`, on a base whose files name its own end alone."""
    tuned = copy.deepcopy(byte_tokenizer)
    tuned.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tuned.chat_template = byte_tokenizer.chat_template.replace("<|end|>", "<|im_end|>\n")
    assert turn_end(byte_tokenizer) == 257 and turn_end(tuned) == 259
    assert named(root, {"eos_token_id": 257}, None).notes(byte_tokenizer) == []
    (note,) = named(root, {"eos_token_id": 257}, None).notes(tuned)
    assert note.startswith("the chat template ends a turn with <|im_end|>, which generation_config.json does not name")
    assert "add 259 to eos_token_id" in note
    assert named(root, {"eos_token_id": [257, 259]}, None).notes(tuned) == []
    tuned.chat_template = "{{ raise_exception('no') }}"
    assert turn_end(tuned) is None
    tuned.chat_template = None
    assert turn_end(tuned) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", r"generation_config.json is not valid JSON \(line 1\)"),
        (b"\xff", "is not UTF-8 text"),
        (b"[]", "is not a JSON object"),
        (b'{"eos_token_id": "</s>"}', "eos_token_id is '</s>', neither a token id nor a list of them"),
        (b'{"eos_token_id": [true]}', r"eos_token_id is \[True\]"),
    ],
)
def test_files_that_name_no_tokens(root, byte_tokenizer, content, sentence):
    (root / "generation_config.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        EndTokens.of(root, byte_tokenizer)
