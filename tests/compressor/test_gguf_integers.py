"""Q4_0 and Q8_0 come in as the integers and scales of the file; what cannot be held so is dequantized, and said."""

import gguf
import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gguf import import_gguf
from compressor.gguf.container import GgufFile
from compressor.quantized import QuantizedWeight, Scheme

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def take(tmp_path):
    return lambda path, **options: import_gguf(path, tmp_path / "import", lambda *_: None, **options)


def blocks_of(path, name):
    """Integers and scales of a tensor, element by element from the description of the format."""
    (tensor,) = (one for one in gguf.GGUFReader(path).tensors if one.name == name)
    is_int8 = tensor.tensor_type.name == "Q8_0"
    codes, scales = [], []
    for row in np.asarray(tensor.data):
        codes.append([])
        scales.append([])
        for block in row.reshape(-1, 34 if is_int8 else 18):
            scales[-1].append(block[:2].copy().view("<f2")[0])
            body = block[2:]
            nibbles = [int(byte) % 16 - 8 for byte in body] + [int(byte) // 16 - 8 for byte in body]
            codes[-1] += body.view(np.int8).tolist() if is_int8 else nibbles
    return np.array(codes, np.int8), np.array(scales, np.float32)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_integers_and_scales_are_those_of_the_blocks(tiny_model, gguf_of, take, kind, bits):
    path = gguf_of(tiny_model("qwen3", tied=False), kind, arch="qwen3")
    checkpoint, _ = take(path)
    assert set(checkpoint.schemes.values()) == {Scheme(bits, 32)}
    assert "lm_head" in checkpoint.schemes
    for parameter, name in ((DOWN, "blk.1.ffn_down.weight"), ("lm_head.weight", "output.weight")):
        codes, scales = blocks_of(path, name)
        (found,) = checkpoint.read([parameter]).values()
        np.testing.assert_array_equal(found.codes.numpy(), codes)
        np.testing.assert_array_equal(found.scales.numpy(), scales)
    assert bits == 8 or scales.min() < 0  # llama.cpp's own, which a sign is part of


def test_a_mixed_file_says_what_it_dequantized(tiny_model, gguf_of, take):
    """llama.cpp gives the head of a Q4_0 file a finer type, and some layers Q4_1."""
    model = tiny_model("llama", tied=False)
    kinds = {"lm_head": "Q5_1", "embed_tokens": "F16", "layers.0.mlp.down_proj": "Q4_1"}
    path = gguf_of(model, "Q4_0", kinds=kinds)
    checkpoint, sentence = take(path)
    assert sentence == (
        f"13 weights of GGUF Q4_0 ({path.name}) kept as its integers and scales; dequantized to float32: "
        "1 of Q4_1: model.layers.0.mlp.down_proj; 1 of Q5_1: lm_head"
    )
    assert {"lm_head", "model.layers.0.mlp.down_proj"}.isdisjoint(checkpoint.schemes)
    head = checkpoint.read(["lm_head.weight"])["lm_head.weight"]
    np.testing.assert_array_equal(head.numpy(), GgufFile.open(path).read("output.weight"))


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
@pytest.mark.parametrize("exact", [True, False])
def test_floats_have_the_dtype_of_the_file_where_it_holds_them(tiny_model, gguf_of, take, kind, dtype, exact):
    """Norms are float32 in every GGUF file, mostly widened from 16 bits."""
    model = tiny_model("llama")
    path = gguf_of(model, "Q8_0", kinds={"embed_tokens": kind, "norm": kind if exact else "F32"}, widen=("norm",))
    checkpoint, sentence = take(path)
    floats = {info.dtype for name, info in checkpoint.tensors.items() if "norm" in name or "embed" in name}
    assert floats == {dtype if exact else torch.float32}
    assert checkpoint.config["dtype"] == str(dtype if exact else torch.float32).removeprefix("torch.")
    assert sentence.endswith("kept as its integers and scales")
    norm = checkpoint.read(["model.norm.weight"])["model.norm.weight"]
    np.testing.assert_array_equal(norm.float().numpy(), GgufFile.open(path).read("output_norm.weight"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_all_can_be_dequantized(tiny_model, gguf_of, take, kind):
    path = gguf_of(tiny_model("llama"), kind)
    checkpoint, sentence = take(path, dequantize=True)
    assert checkpoint.schemes == {}
    assert sentence.startswith(f"dequantized from GGUF {kind} ({path.name}) to float32, as --requantize asks")
    found = checkpoint.read([DOWN])[DOWN]
    np.testing.assert_array_equal(found.numpy(), GgufFile.open(path).read("blk.1.ffn_down.weight"))


def test_an_import_is_not_taken_for_the_other_one(tiny_model, gguf_of, take):
    path = gguf_of(tiny_model("llama"), "Q4_0")
    take(path)
    with pytest.raises(InputError, match="not converted from this model"):
        take(path, dequantize=True)


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ([32] * 3, r"llmc.group_sizes names 3 of 20 tensors"),
        ([48] * 20, r"says 48 of blk"),
        ([64] * 20, r"scales of blk.*weight differ within groups of 64"),
    ],
)
def test_a_note_of_group_sizes_that_does_not_fit(tiny_model, gguf_of, take, tmp_path, noted, message):
    path = gguf_of(tiny_model("llama"), "Q4_0", extra={"llmc.group_sizes": noted}, kinds={"embed_tokens": "F32"})
    with pytest.raises(InputError, match=message):
        take(path)
    assert not (tmp_path / "import").exists()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_reading_in_parts_changes_nothing(tiny_model, gguf_of, take, tmp_path, monkeypatch, kind):
    path = gguf_of(tiny_model("llama"), kind)
    whole, _ = take(path)
    monkeypatch.setattr("compressor.gguf.container.READ_BYTES", 300)
    parts, _ = import_gguf(path, tmp_path / "again", lambda *_: None)
    assert parts.digest == whole.digest


def test_one_linear_is_read_at_a_time_and_once(tiny_model, gguf_of, take, monkeypatch):
    reads = []
    rows = GgufFile.rows
    monkeypatch.setattr(GgufFile, "rows", lambda self, name: (reads.append(name), rows(self, name))[1])
    checkpoint, _ = take(gguf_of(tiny_model("llama"), "Q8_0", kinds={"embed_tokens": "F32"}))
    assert len(reads) == len(set(reads)) == len(checkpoint.parameters)


def test_transformers_opens_it(tiny_model, gguf_of, take):
    from transformers import AutoModelForCausalLM

    path = gguf_of(tiny_model("llama"), "Q4_0")
    checkpoint, _ = take(path)
    tokens = torch.arange(20).unsqueeze(0)
    expected = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)(tokens)
    found = AutoModelForCausalLM.from_pretrained(checkpoint.root, dtype=torch.float32)(tokens)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_an_integer_is_no_float(tiny_model, gguf_of, take):
    checkpoint, _ = take(gguf_of(tiny_model("llama"), "Q8_0"))
    assert isinstance(checkpoint.read([DOWN])[DOWN], QuantizedWeight)
    assert Checkpoint.open(checkpoint.root).schemes == checkpoint.schemes
