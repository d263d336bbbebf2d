"""GGUF import, judged by transformers' own GGUF loader, by SentencePiece, and by the models that were written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gguf import import_gguf
from compressor.gguf.config import LLAMA3, build_config, end_ids, llama3_factors
from compressor.gguf.container import GgufFile
from compressor.gguf.importer import PROBE
from compressor.gguf.tokenizer import build_tokenizer, merges_by_score
from compressor.gguf.weights import Reading, half_rotated
from compressor.quantized import QuantizedWeight


def silent(*_):
    pass


FLOAT, DEQUANTIZED = "converted from {}, float tensors as float32", "dequantized from {} to float32"
KEPT = "14 weights of {} kept as its integers and scales; dequantized to float32: 1 of %s: model.embed_tokens"
SENTENCES = dict.fromkeys(("F32", "F16", "BF16"), FLOAT) | dict.fromkeys(("Q4_1", "Q5_0", "Q5_1"), DEQUANTIZED)
SENTENCES |= {kind: KEPT % kind for kind in ("Q4_0", "Q8_0")}


@pytest.mark.parametrize("kind", SENTENCES)
def test_equals_the_gguf_loader_of_transformers(tiny_model, gguf_of, tmp_path, kind):
    path = gguf_of(tiny_model("llama"), kind)
    checkpoint, sentence = import_gguf(path, tmp_path / "out", silent)
    expected = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    assert sentence == SENTENCES[kind].format(f"GGUF {kind} ({path.name})")
    assert checkpoint.dtype == torch.float32
    assert set(checkpoint.parameters) == expected.keys() - {"lm_head.weight"}
    for name, weight in checkpoint.read(list(checkpoint.parameters)).items():
        values = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
        assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize(
    ("family", "tied", "overrides"),
    [
        ("llama", True, {}),
        ("llama", False, {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", True, {}),
        ("qwen2", False, {}),
        ("qwen3", True, {"head_dim": 32}),
        ("qwen3", False, {}),
        ("phi3", True, {}),
        ("phi3", False, {"sliding_window": 100}),
        ("gpt2", True, {}),
        ("gemma2", True, {"query_pre_attn_scalar": 16}),
        # Without a word on which layers have a window: five of six.
        ("gemma3_text", True, {"query_pre_attn_scalar": 16, "num_hidden_layers": 6,
                               "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}),
        ("gemma3_text", False, {"query_pre_attn_scalar": 16, "final_logit_softcapping": None,
                                "layer_types": ["sliding_attention"] * 2}),
    ],
)  # fmt: skip
def test_float_file_gives_back_the_model(tiny_model, gguf_of, tmp_path, family, tied, overrides):
    root = tiny_model(family, tied=tied, **overrides)
    checkpoint, _ = import_gguf(gguf_of(root), tmp_path / "out", silent)
    original = AutoModelForCausalLM.from_pretrained(root)
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert checkpoint.architecture == Checkpoint.open(root).architecture
    assert_same_weights(imported, original, checkpoint.architecture.norm_shift)
    tokens = torch.arange(20).unsqueeze(0)
    assert torch.equal(imported(tokens).logits, original(tokens).logits)


def assert_same_weights(found, expected, shift):
    """Equal ones; those of norms when `shift` is added to them, as the file has them."""
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        added = shift if name.endswith("norm.weight") else 0
        assert torch.equal(found[name] + added, expected[name] + added), name


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_NL"])
def test_reading_in_parts_equals_dequantizing_at_once(tmp_path, monkeypatch, kind):
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantized]
    rows = np.random.default_rng(0).integers(0, 60, (7, 2 * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("t", rows, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr("compressor.gguf.container.READ_BYTES", 3 * rows.shape[1])
    found = GgufFile.open(tmp_path / "one.gguf").read("t")
    assert found.shape == (7, 2 * block)
    assert np.array_equal(found, gguf.dequantize(rows, quantized))


def test_llama_rows_go_back_from_pairs_to_halves():
    rows = np.arange(8).reshape(8, 1)  # two heads of four: pairs (0, 2) and (1, 3)
    assert half_rotated(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_one_block_is_read_at_a_time(tiny_model, gguf_of, monkeypatch):
    root = tiny_model("llama", tied=False)
    file, architecture = GgufFile.open(gguf_of(root)), Checkpoint.open(root).architecture
    reading, reads = Reading.of(file, architecture, dequantize=False), []
    read = GgufFile.read
    monkeypatch.setattr(GgufFile, "read", lambda self, name: (reads.append(name), read(self, name))[1])
    counts = [len(reads) for _ in reading.blocks(silent)]
    assert counts == [1, 1 + 9, 1 + 9 + 9, 1 + 9 + 9 + 2]


def test_folder_is_complete(tiny_model, gguf_of, tmp_path, byte_tokenizer):
    path = gguf_of(tiny_model("llama"), extra={"tokenizer.ggml.eot_token_id": 256})
    import_gguf(path, tmp_path / "out", silent)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 256, "eos_token_id": [257, 256], "pad_token_id": 258}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")
    assert tokenizer.chat_template == byte_tokenizer.chat_template
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["rms_norm_eps"]) == (256, 257, 1e-6)


def test_import_is_used_again_only_for_the_same_file(tiny_model, gguf_of, tmp_path):
    path = gguf_of(tiny_model("llama"))
    first, _ = import_gguf(path, tmp_path / "out", silent)
    again, _ = import_gguf(path, tmp_path / "out", lambda *_: pytest.fail("converted twice"))
    assert again.digest == first.digest
    other = gguf_of(tiny_model("qwen2"))
    with pytest.raises(InputError, match="not converted from this model"):
        import_gguf(other, tmp_path / "out", silent)


# -- rotary positions ---------------------------------------------------------------------------------------------


def test_llama3_rope_factors_become_rope_scaling(tiny_model, gguf_of, tmp_path):
    scaling = {"rope_type": "llama3", "factor": 32.0, **LLAMA3}
    root = tiny_model("llama", rope_parameters={"rope_theta": 500000.0, **scaling})
    factors = llama3_factors(500000.0, 16, 32.0).astype(np.float32)
    path = gguf_of(root, tensors={"rope_freqs.weight": factors})
    assert build_config(GgufFile.open(path))["rope_scaling"] == scaling
    import_gguf(path, tmp_path / "out", silent)
    tokens = torch.arange(40).unsqueeze(0)
    original, imported = (AutoModelForCausalLM.from_pretrained(folder) for folder in (root, tmp_path / "out"))
    assert torch.equal(imported(tokens).logits, original(tokens).logits)


def test_llama3_rope_factors_are_the_frequencies_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **LLAMA3}
    config = LlamaConfig(head_dim=64, max_position_embeddings=131072, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / llama3_factors(500000.0, 64, 8.0), scaled.numpy(), rtol=1e-5)


def test_rope_factors_of_another_rule_are_refused(tiny_model, gguf_of):
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    path = gguf_of(tiny_model("llama"), tensors={"rope_freqs.weight": factors})
    with pytest.raises(InputError, match="does not follow the rule"):
        build_config(GgufFile.open(path))


def test_linear_and_yarn_scaling(tiny_model, gguf_of):
    root = tiny_model("qwen2")
    scaling = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0}
    assert build_config(GgufFile.open(gguf_of(root, extra=scaling)))["rope_scaling"] == {
        "rope_type": "linear",
        "factor": 2.0,
    }
    scaling |= {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.original_context_length": 256}
    assert build_config(GgufFile.open(gguf_of(root, extra=scaling)))["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 256,
    }


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_settings_of_yarn_at_their_defaults_say_nothing(tiny_model, gguf_of, kind):
    scaling = {"type": kind, "factor": 2.0, "original_context_length": 256} | {
        "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0,
        "yarn_ext_factor": -1.0, "attn_factor": 1.0}  # fmt: skip
    if kind == "linear":
        del scaling["original_context_length"]
    path = gguf_of(tiny_model("qwen2"), extra={f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()})
    found = build_config(GgufFile.open(path))["rope_scaling"]
    assert (found["rope_type"], found["factor"]) == (kind, 2.0)
    assert not any("yarn" in key or "attn" in key for key in found)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("block_count", 10**9, "block_count: 1000000000, and holds"),
        ("attention.head_count", 0, "attention.head_count: 0, which is no size"),
        ("embedding_length", "wide", "embedding_length: 'wide', which is no size"),
    ],
)
def test_sizes_that_the_file_cannot_have(tiny_model, gguf_of, key, value, sentence):
    path = gguf_of(tiny_model("llama"), extra={f"llama.{key}": value})
    with pytest.raises(InputError, match=sentence):
        build_config(GgufFile.open(path))


@pytest.mark.parametrize(
    "extra",
    [
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0,
         "llama.rope.scaling.original_context_length": 64, "llama.rope.scaling.yarn_ext_factor": 0.5},
    ],
)  # fmt: skip
def test_unknown_rope_scaling_is_refused(tiny_model, gguf_of, extra):
    with pytest.raises(InputError, match="scales rotary positions"):
        build_config(GgufFile.open(gguf_of(tiny_model("llama"), extra=extra)))


# -- what is refused ----------------------------------------------------------------------------------------------


def test_truncated_file_is_refused_at_any_length(tiny_model, gguf_of, tmp_path):
    whole = gguf_of(tiny_model("llama")).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 10, 30, 500, 4000, len(whole) // 2, len(whole) - 64):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"truncated|not a GGUF file"):
            import_gguf(cut, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"general.architecture": "mamba"}, "the architecture 'mamba', which cannot be read"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
        ({"llama.attention.sliding_window": 128}, "sliding_window"),
        ({"llama.block_count": None}, "no llama.block_count"),
        ({"llama.block_count": 3}, "no tensor blk.2"),
        ({"llama.block_count": 1}, "blk.1.* has no place"),
        ({"llama.feed_forward_length": 64}, r"blk.0.ffn_gate.weight has shape \[128, 64\]"),
        ({"llama.feed_forward_length": [128, 64]}, "differs between layers"),
        ({"llama.attention.value_length": 8}, "widths differ"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of kind 'bert'"),
        ({"tokenizer.ggml.pre": "made-up"}, "rule 'made-up'"),
    ],
)
def test_what_cannot_be_read_is_named(tiny_model, gguf_of, tmp_path, extra, message):
    path = gguf_of(tiny_model("llama"), arch=None, extra=extra)
    if name := extra.get("general.architecture"):
        path.write_bytes(
            path.read_bytes().replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05" + bytes(7) + name.encode(), 1)
        )
    with pytest.raises(InputError, match=message):
        import_gguf(path, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_file_with_nan_is_refused_when_it_is_read(tiny_model, gguf_of, tmp_path):
    root = tiny_model("llama")
    path = gguf_of(root)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = Checkpoint.open(root).read([name])[name].numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(weight, np.full(len(weight) // 4, np.nan, np.float32).tobytes()))
    checkpoint, _ = import_gguf(path, tmp_path / "out", silent)
    with pytest.raises(InputError, match="NaN"):
        checkpoint.block("layers.1")


# -- tokenizers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Vocabulary and merges of a byte-level BPE tokenizer trained on the probe text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator([PROBE * 3, "1234567 12 123 don't  split HELLO WORLD"], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def file_with(trained, **fields):
    vocabulary, merges = trained
    tokens = sorted(vocabulary, key=vocabulary.get)
    metadata = {"general.architecture": "llama", "llama.context_length": 64, "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
                "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1)]}  # fmt: skip
    return GgufFile(None, metadata | {f"tokenizer.ggml.{key}": value for key, value in fields.items()}, {})


def test_qwen2_rule_equals_transformers(trained):
    from transformers import Qwen2Tokenizer

    ours = build_tokenizer(file_with(trained, pre="qwen2"))
    theirs = Qwen2Tokenizer(vocab=trained[0], merges=trained[1])
    assert ours(PROBE)["input_ids"] == theirs(PROBE)["input_ids"]
    assert ours.decode(ours(PROBE)["input_ids"]) == PROBE


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["don", "'t", "Ġ", "ĠSPLIT", "Ġ1234", "Ċ", "Ċ", "x"]),
        ("smollm", ["don", "'t", "Ġ", "ĠSPLIT", "Ġ", "1", "2", "3", "4", "Ċ", "Ċ", "x"]),
        ("qwen2", ["don", "'t", "Ġ", "ĠSPLIT", "Ġ", "1", "2", "3", "4", "ĊĊ", "x"]),
        ("llama-bpe", ["don", "'t", "Ġ", "ĠSPLIT", "Ġ", "123", "4", "ĊĊ", "x"]),
        ("tekken", ["don", "'t", "Ġ", "ĠSPLIT", "Ġ", "1", "2", "3", "4", "ĊĊ", "x"]),
    ],
)
def test_text_is_split_by_the_rule_that_the_file_names(trained, pre, pieces):
    tokenizer = build_tokenizer(file_with(trained, pre=pre))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("don't  SPLIT 1234\n\nx")
    assert [piece for piece, _ in split] == pieces
    assert tokenizer.decode(tokenizer(PROBE)["input_ids"]) == PROBE


def test_special_tokens_are_those_of_the_metadata(trained):
    named = {"pre": "smollm", "bos_token_id": 0, "eos_token_id": 5, "padding_token_id": 7, "unknown_token_id": 0}
    tokenizer = build_tokenizer(file_with(trained, **named))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 5, 7)
    assert tokenizer("<|endoftext|>1")["input_ids"] == [0, trained[0]["1"]]
    assert end_ids(file_with(trained, eos_token_id=5, eot_token_id=9)) == [5, 9]


@pytest.mark.parametrize(
    ("pre", "fields", "around"),
    [
        ("smollm", {}, ([], [])),
        ("llama-bpe", {}, ([0], [])),
        ("llama-bpe", {"add_bos_token": False}, ([], [])),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, ([0], [5])),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(trained, pre, fields, around):
    tokenizer = build_tokenizer(file_with(trained, pre=pre, bos_token_id=0, eos_token_id=5, **fields))
    plain = tokenizer("1", add_special_tokens=False)["input_ids"]
    assert tokenizer("1")["input_ids"] == around[0] + plain + around[1]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabulary_tokenizes_like_sentencepiece(tmp_path, prefix):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROBE, "the cat sat on the mat", "a theory of the sea"] * 20), model_writer=model,
        model_type="bpe", vocab_size=420, byte_fallback=True, character_coverage=0.98, add_dummy_prefix=prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = theirs.get_piece_size()
    tokens, scores = zip(*((theirs.id_to_piece(i), theirs.get_score(i)) for i in range(size)), strict=True)
    fields = {"tokens": tokens, "scores": scores,
              "token_type": [2, 3, 3, *[6] * 256, *[1] * (size - 259)], "bos_token_id": 1, "eos_token_id": 2,
              "unknown_token_id": 0, "add_space_prefix": prefix, "model": "llama"}  # fmt: skip
    ours = build_tokenizer(file_with(({}, []), **fields))
    for text in ("the cat on the sea", PROBE, "unseen: ждать ﷽"):
        assert ours(text)["input_ids"] == [1, *theirs.encode(text)]
        assert ours.decode(ours(text)["input_ids"], skip_special_tokens=True) == theirs.decode(theirs.encode(text))


def test_merges_come_best_score_first():
    vocabulary = {"a": 0, "b": 1, "ab": 2, "abb": 3}
    assert merges_by_score(vocabulary, [0.0, 0.0, -2.0, -1.0]) == [("ab", "b"), ("a", "b")]


def test_tokenizer_that_transformers_overrides_is_refused(tiny_model, gguf_of, tmp_path, byte_tokenizer):
    # transformers gives every qwen2 folder its own splitting rule, in which no token joins two digits.
    known = byte_tokenizer.convert_ids_to_tokens(range(259))
    tokens = [*known, "12", *(f"[unused{index}]" for index in range(260, 288))]
    extra = {"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["1 2"]}
    with pytest.raises(InputError, match="reads the model's tokenizer otherwise"):
        import_gguf(gguf_of(tiny_model("qwen2"), extra=extra), tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_merges_that_make_no_token_are_refused(trained):
    with pytest.raises(InputError, match="merges do not fit"):
        build_tokenizer(file_with(trained, pre="gpt-2", merges=["@ @"]))
