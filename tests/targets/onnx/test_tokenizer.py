"""onnxruntime-genai's own tokenizer is held against transformers', before any work and in the artifact."""

import copy
import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from compressor.encoding import TEXTS, all_texts, differences
from compressor.errors import InputError
from compressor.files import write_json
from compressor.tokenizer import load_tokenizer
from targets.onnx.target import OnnxInt4
from targets.onnx.tokenizer import NO_MODEL, open_tokenizer, problems, write_tokenizer

og = pytest.importorskip("onnxruntime_genai")


@pytest.fixture
def opening(byte_tokenizer):
    """The tokenizer that begins every text with its first special token, as those of Llama and Gemma do."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    around = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 256)])
    tokenizer.backend_tokenizer.post_processor = around
    return tokenizer


@pytest.fixture
def spaced():
    """A tokenizer that joins words over spaces, where genai splits before it merges."""
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "▁")})
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", *letters, "▁▁"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("▁", "▁")], unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>")


def written(tokenizer, root, out):
    tokenizer.save_pretrained(root)
    out.mkdir()
    write_tokenizer(root, tokenizer, out)
    write_json(out / "genai_config.json", NO_MODEL)
    return out


def test_special_tokens_are_added_as_the_model_was_measured(opening, tmp_path):
    folder = written(opening, tmp_path / "model", tmp_path / "out")
    assert differences(open_tokenizer(folder), opening, all_texts(opening)) == []
    assert problems(tmp_path / "model", "") == []
    bare = og.Tokenizer(str(folder))  # what users of its library write
    assert opening("Hi")["input_ids"] == [256, *bare.encode("Hi").tolist()]
    assert "update_options(add_special_tokens=True)" in OnnxInt4().run_command("artifact", {})


def test_another_splitting_is_refused_before_work(spaced, tmp_path):
    spaced.save_pretrained(tmp_path)
    (problem,) = OnnxInt4().tokenizer_problems(tmp_path, 1000)
    assert problem.startswith("onnxruntime-genai's own tokenizer differs from the model's: of ")
    assert problem.endswith("; onnx-int4:tokenizer=transformers serves it with the model's own.")
    assert str(differences(lambda text: [-1], spaced, ["  s"])[0]) == "of '  s' it makes -1 and not ▁▁ s"
    served = OnnxInt4(tokenizer="transformers")
    assert served.tokenizer_problems(tmp_path, 1000) == []
    command = served.run_command("artifact", {})
    assert 'AutoTokenizer.from_pretrained("artifact")' in command
    assert "og.Tokenizer" not in command


def test_tokenizer_json_is_written_where_there_is_none(tmp_path):
    """A folder with vocab.json and merges.txt, as those of Qwen2 and GPT-2 were."""
    root, out = tmp_path / "model", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    write_json(root / "vocab.json", vocabulary | {"<|endoftext|>": 256})
    (root / "merges.txt").write_text("#version: 0.2\n")
    write_json(root / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    tokenizer = load_tokenizer(root)
    write_tokenizer(root, tokenizer, out)
    write_json(out / "genai_config.json", NO_MODEL)
    assert differences(open_tokenizer(out), tokenizer, all_texts(tokenizer)) == []


def test_of_named_chat_templates_the_default_one_is_kept(byte_tokenizer, tmp_path):
    root, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    byte_tokenizer.save_pretrained(root)
    (root / "chat_template.jinja").unlink(missing_ok=True)
    values, named = json.loads((root / "tokenizer_config.json").read_text()), [{"name": "tool_use", "template": "b"}]
    write_json(
        root / "tokenizer_config.json", values | {"chat_template": [{"name": "default", "template": "a"}, *named]}
    )
    write_tokenizer(root, load_tokenizer(root), out)
    write_json(out / "genai_config.json", NO_MODEL)
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "a"
    assert open_tokenizer(out)("a") == byte_tokenizer("a")["input_ids"]
    write_json(root / "tokenizer_config.json", values | {"chat_template": named})
    with pytest.raises(InputError, match="has chat templates called tool_use, and none called default"):
        write_tokenizer(root, load_tokenizer(root), out)


def test_a_damaged_tokenizer_is_one_sentence(tmp_path):
    write_json(tmp_path / "genai_config.json", NO_MODEL)
    with pytest.raises(InputError, match="onnxruntime-genai cannot open the tokenizer"):
        open_tokenizer(tmp_path)
