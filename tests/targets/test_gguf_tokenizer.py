"""A tokenizer as GGUF metadata: named as llama.cpp's converter names it, and read as before by llmc's importer."""

import io
import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from compressor.errors import InputError
from compressor.gguf import import_gguf
from compressor.gguf.container import GgufFile
from compressor.gguf.importer import PROBE
from compressor.gguf.tokenizer import build_tokenizer, merges_by_score
from compressor.quantized import Scheme
from compressor.tokenizer import load_tokenizer
from targets.gguf import GgufQ4
from targets.gguf.tokenizer import check_tokenizer, describe_tokenizer, end_keys, lost_ends, tokenizer_problems

# As the tokenizer.json of Llama 3 has it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As those of Phi-4 and of Phi-4-mini have it.
CL100K = LLAMA3
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
AFTER_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
RULES = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), AFTER_SPLIT]),
    "dbrx": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CL100K), "isolated"), AFTER_SPLIT]),
    "gpt-4o": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "isolated"), AFTER_SPLIT]),
}
CONTEXT = {"general.architecture": "llama", "llama.context_length": 64}


def trained(splitting, ignore_merges=False):
    """A byte-level BPE tokenizer of the probe text; `<|end|>` is special, `<tool>` is not."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitting, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator([PROBE * 3, "1234567 12 123 don't  split HELLO WORLD"], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.mark.parametrize("name", RULES)
def test_splitting_rules_have_names(name):
    tokenizer = trained(RULES[name], ignore_merges=name == "llama-bpe")
    described = describe_tokenizer(tokenizer, len(tokenizer) + 2)
    check_tokenizer(CONTEXT | described, tokenizer)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = described["tokenizer.ggml.tokens"], described["tokenizer.ggml.token_type"]
    assert (described["tokenizer.ggml.model"], described["tokenizer.ggml.pre"]) == ("gpt2", name)
    assert described["tokenizer.ggml.merges"] == [" ".join(pair) for pair in document["model"]["merges"]]
    assert tokens[:-2] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert [types[tokens.index(token)] for token in ("<|end|>", "a", "<tool>")] == [3, 1, 4]
    assert types[-2:] == [5, 5]
    assert described["tokenizer.ggml.eos_token_id"] == 0
    assert "tokenizer.ggml.bos_token_id" not in described


def test_qwen2():
    document = json.loads(trained(BYTES).backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=document["vocab"], merges=[tuple(pair) for pair in document["merges"]])
    described = describe_tokenizer(tokenizer, 1000)
    check_tokenizer(CONTEXT | described, tokenizer)
    assert described["tokenizer.ggml.pre"] == "qwen2"


def test_bos_before_every_text():
    tokenizer = trained(RULES["llama-bpe"])
    from tokenizers.processors import TemplateProcessing

    around = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    tokenizer.backend_tokenizer.post_processor = around
    tokenizer.bos_token = "<|end|>"
    described = describe_tokenizer(tokenizer, 1000)
    check_tokenizer(CONTEXT | described, tokenizer)
    assert (described["tokenizer.ggml.add_bos_token"], described["tokenizer.ggml.add_eos_token"]) == (True, False)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROBE, "the cat sat on the mat", "a theory of the sea"] * 20), model_writer=model,
        model_type="bpe", vocab_size=420, byte_fallback=True, character_coverage=0.98, add_dummy_prefix=prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [theirs.id_to_piece(index) for index in range(theirs.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # What transformers makes of such a model: merges in the order of the scores.
    merges = merges_by_score(vocabulary, [theirs.get_score(index) for index in range(len(pieces))])
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    described = describe_tokenizer(tokenizer, len(pieces))
    check_tokenizer(CONTEXT | described, tokenizer)
    assert described["tokenizer.ggml.model"] == "llama"
    assert described["tokenizer.ggml.add_space_prefix"] is prefix
    assert described["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    # llama.cpp joins the pair whose token has the best score: the order must be that of the original.
    learnt = range(259, len(pieces))
    ours, scores = described["tokenizer.ggml.scores"], [theirs.get_score(index) for index in range(len(pieces))]
    made = {"".join(pair) for pair in merges}
    ranked = [index for index in learnt if pieces[index] in made]
    assert sorted(ranked, key=lambda index: -ours[index]) == sorted(ranked, key=lambda index: -scores[index])


def test_special_tokens_of_phi3_swallow_the_space_behind_them():
    """llama.cpp knows it by the model's name only."""
    tokenizer = trained(BYTES)
    plain = [AddedToken(token, special=True) for token in ("<unk>", "<s>", "<|endoftext|>")]
    stripping = [AddedToken(token, special=True, rstrip=True) for token in ("</s>", "<|user|>", "<|end|>")]
    tokenizer.add_tokens([*plain, *stripping], special_tokens=True)
    described = describe_tokenizer(tokenizer, len(tokenizer))
    assert described["general.name"] == "Phi-3"
    read = build_tokenizer(GgufFile(Path("model.gguf"), CONTEXT | described, {}))
    text = "<s> <|user|>\nHello<|end|>\n<|endoftext|> <unk> x"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert "general.name" not in describe_tokenizer(trained(BYTES), 500)


def test_what_llama_cpp_has_no_name_for():
    odd = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+"), "isolated"), AFTER_SPLIT])
    with pytest.raises(InputError, match="by a rule whose name") as caught:
        describe_tokenizer(trained(odd), 1000)
    assert "vllm-int4 or hf" in caught.value.hint
    with pytest.raises(InputError, match="is not known here"):
        describe_tokenizer(trained(pre_tokenizers.Whitespace()), 1000)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(InputError, match="no Unigram tokenizer"):
        describe_tokenizer(PreTrainedTokenizerFast(tokenizer_object=unigram), 1000)


def test_a_prefix_space_that_cannot_be_said_is_found():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    with pytest.raises(InputError, match="splits text in a way that cannot be said"):
        check_tokenizer(CONTEXT | describe_tokenizer(tokenizer, 1000), tokenizer)


def test_more_tokens_than_rows():
    tokenizer = trained(BYTES)
    last = len(tokenizer) - 1
    with pytest.raises(InputError, match=rf"names token {last}, but the model's table has {last} rows"):
        describe_tokenizer(tokenizer, last)


@pytest.mark.parametrize(
    ("ends", "eos", "found"),
    [
        ([2], 2, {}),
        ([7], 2, {"eot": 7}),
        ([2, 7], 2, {"eot": 7}),
        ([7, 2, 8], 2, {"eot": 7, "eom": 8}),
        ([7, 8], None, {"eos": 7, "eot": 8}),
    ],
)
def test_keys_of_tokens_that_end_a_generation(ends, eos, found):
    assert end_keys(ends, eos) == {f"tokenizer.ggml.{key}_token_id": token for key, token in found.items()}


def test_tokens_without_a_key_are_named(tiny_model, quantize, lower, recast, byte_tokenizer):
    assert lost_ends([257, 0, 1], byte_tokenizer) == []
    root = recast(tiny_model("llama"), torch.float32)
    (root / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 0, 1, 2, 3]}))
    _, notes = lower(GgufQ4(), quantize(root, Scheme(4, 64)))
    lost = ", ".join(byte_tokenizer.convert_ids_to_tokens([2, 3]))
    assert any(note.startswith(f"a GGUF file has room for 3 tokens that end a text; {lost} end it") for note in notes)


def test_file_describes_itself(tiny_model, quantize, lower, recast, tmp_path):
    root = recast(tiny_model("llama"), torch.float32)
    (root / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}))
    artifact, _ = lower(GgufQ4(), quantize(root, Scheme(4, 64)))
    metadata = GgufFile.open(artifact.root / "model.gguf").metadata
    expected = {"general.architecture": "llama", "general.type": "model", "general.file_type": 2,
                "general.quantization_version": 2, "llama.block_count": 2, "llama.attention.head_count_kv": 2,
                "llama.vocab_size": 288, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.eos_token_id": 257,
                "tokenizer.ggml.eot_token_id": 256, "tokenizer.ggml.padding_token_id": 258,
                "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected
    assert sorted(set(metadata["llmc.group_sizes"])) == [0, 64]
    import_gguf(artifact.root / "model.gguf", tmp_path / "imported", lambda *_: None)
    ours, theirs = load_tokenizer(tmp_path / "imported"), load_tokenizer(root)
    assert ours(PROBE)["input_ids"] == theirs(PROBE)["input_ids"]
    assert ours.chat_template == theirs.chat_template
    ends = json.loads((tmp_path / "imported" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [257, 256]


def test_describing_a_tokenizer_says_nothing_of_lengths(tiny_model, monkeypatch):
    from transformers.tokenization_utils_base import logger

    said = []
    monkeypatch.setattr(logger, "warning", lambda words, *_: said.append(words))
    assert tokenizer_problems(tiny_model("llama"), 288) == []
    assert not said
