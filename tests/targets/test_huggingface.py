"""hf: the checkpoint's own bytes, read back by compressed-tensors and opened by transformers."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import rounding
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.quantized import Activations, Scheme
from compressor.shards import INDEX, SINGLE_SHARD
from targets.huggingface import HuggingFace

SCHEMES = [
    Scheme(bits, group_size, symmetric)
    for bits in (4, 8)
    for group_size in (32, 64, 128, None)
    for symmetric in (True, False)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_transformers_computes_what_the_integers_say(tiny_model, quantize, lower, verified, logits_of, scheme):
    root = tiny_model("llama", hidden_size=128, head_dim=32, num_hidden_layers=1)
    checkpoint = quantize(root, scheme)
    artifact, notes = lower(HuggingFace(), checkpoint)
    assert notes == []
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    assert torch.equal(logits_of(artifact.root), logits_of(checkpoint))


def test_a_folder_that_left_something_to_decide_is_written_anew(tiny_model, lower, verified, logits_of, tmp_path):
    root = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    head = torch.linspace(-1, 1, 288 * 64).view(288, 64)
    save_file(load_file(root / SINGLE_SHARD) | {"lm_head.weight": head}, root / SINGLE_SHARD, metadata={"format": "pt"})
    (root / INDEX).write_text("{}")
    checkpoint = Checkpoint.open(root)
    artifact, notes = lower(HuggingFace(), checkpoint)
    assert "written anew" in notes[0]
    assert Checkpoint.open(artifact.root).notes == ()
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    assert torch.equal(logits_of(artifact.root), logits_of(root))


W8A8 = [Scheme(8, None, activations=Activations(dynamic=dynamic)) for dynamic in (True, False)]
FP8 = [
    Scheme(8, None, type="float", activations=activations, per_tensor=per_tensor)
    for per_tensor in (False, True)
    for activations in (None, Activations(type="float"), Activations(type="float", dynamic=False))
]


@pytest.fixture
def their_range(monkeypatch):
    """The largest int8 activation as compressed-tensors has it; the rest of the arithmetic is the same."""
    monkeypatch.setattr(rounding, "INT8_LARGEST", 127.5)


@pytest.mark.usefixtures("their_range")
@pytest.mark.parametrize("kv_cache", [False, True])
@pytest.mark.parametrize("scheme", [*W8A8, *FP8, Scheme(4, 64)], ids=str)
def test_activations_and_cache_are_rounded_as_our_decoder_does(
    tiny_model, quantize, lower, verified, logits_of, scheme, kv_cache
):
    checkpoint = quantize(tiny_model("qwen3", tied=False), scheme, kv_cache=kv_cache)
    artifact, _ = lower(HuggingFace(), checkpoint)
    verification = verified(HuggingFace(), artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.architecture.tensor_shapes()) + 4 * kv_cache
    decoder = Decoder(checkpoint)
    ours = decoder.final_states(torch.arange(0, 250, 10).view(1, -1)) @ decoder.head().T
    assert torch.equal(logits_of(artifact.root), ours)
    changed = float((logits_of(checkpoint) - ours).abs().max())
    assert changed > 1e-3 if kv_cache or scheme.activations else changed < 1e-5


def test_formats_side_by_side(tiny_model, quantize, lower, verified, logits_of):
    but = {"down_proj": W8A8[1], "o_proj": FP8[1], "layers.1.mlp.up_proj": None, "layers.0.mlp.up_proj": FP8[0]}
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64), but, kv_cache=True)
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    decoder = Decoder(checkpoint)
    ours = decoder.final_states(torch.arange(0, 250, 10).view(1, -1)) @ decoder.head().T
    assert torch.equal(logits_of(artifact.root), ours)


def test_a_float_model_with_an_fp8_cache(tiny_model, lower, verified, logits_of, tmp_path):
    def edit(block):
        scales = {f"model.{block.name}.self_attn.{x}_scale": torch.tensor([2.0**-8]) for x in "kv"}
        return block if block.index is None else block.with_weights(scales)

    checkpoint = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "step", edit, {})
    assert checkpoint.schemes == {}
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    decoder = Decoder(checkpoint)
    ours = decoder.final_states(torch.arange(0, 250, 10).view(1, -1)) @ decoder.head().T
    assert torch.equal(logits_of(artifact.root), ours)
    assert not torch.equal(logits_of(checkpoint), ours)


@pytest.mark.parametrize(
    ("tensor", "found"),
    [("mlp.up_proj.weight", ".mlp.up_proj.weight"), ("mlp.up_proj.input_scale", ".mlp.up_proj.weight"),
     ("self_attn.k_scale", ".self_attn.k_scale")],
)  # fmt: skip
def test_a_flipped_byte_of_an_fp8_folder_is_found(tiny_model, quantize, lower, verified, flip_byte, tensor, found):
    checkpoint = quantize(tiny_model("llama"), FP8[2], kv_cache=True)
    artifact, _ = lower(HuggingFace(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"model.layers.0.{tensor}")
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == [f"model.layers.0{found}"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_families(tiny_model, quantize, lower, verified, logits_of, family, tied):
    checkpoint = quantize(tiny_model(family, tied=tied), Scheme(4, 64, symmetric=False))
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    assert torch.equal(logits_of(artifact.root), logits_of(checkpoint))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_models(tiny_model, quantize, lower, verified, logits_of, recast, dtype):
    checkpoint = quantize(recast(tiny_model("llama"), dtype), Scheme(4, 64, symmetric=False))
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    assert torch.equal(logits_of(artifact.root, dtype=dtype), logits_of(checkpoint, dtype=dtype))


def test_several_schemes_and_skipped_layers(tiny_model, quantize, lower, verified, logits_of):
    but = {"down_proj": Scheme(8, 32, symmetric=False), "o_proj": None, "layers.1.mlp.up_proj": Scheme(4, None)}
    checkpoint = quantize(tiny_model("qwen2", tied=False), Scheme(4, 64), but)
    assert HuggingFace().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    assert torch.equal(logits_of(artifact.root), logits_of(checkpoint))


def test_files_are_byte_copies_without_the_steps_own(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64))
    artifact, _ = lower(HuggingFace(), checkpoint)
    copied = {path.name: path.read_bytes() for path in artifact.root.iterdir()}
    kept = {path.name: path.read_bytes() for path in checkpoint.root.iterdir() if path.name != "llmc-step.json"}
    assert copied == kept


def test_a_float_checkpoint_is_copied_too(tiny_model, lower, verified, logits_of):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    assert HuggingFace().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []
    assert torch.equal(logits_of(artifact.root), logits_of(checkpoint.root))


def test_a_tied_head_stored_twice_is_no_mismatch(tiny_model, lower, verified, recast):
    root = tiny_model("llama")
    table = Checkpoint.open(root).read(["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    checkpoint = Checkpoint.open(recast(root, torch.float32, {"lm_head.weight": table.clone()}))
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == []


def test_a_flipped_byte_is_found(tiny_model, quantize, lower, verified, flip_byte):
    checkpoint = quantize(tiny_model("llama"), Scheme(8, 32))
    artifact, _ = lower(HuggingFace(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", "model.layers.0.mlp.gate_proj.weight_packed")
    assert verified(HuggingFace(), artifact, checkpoint).mismatches == ["model.layers.0.mlp.gate_proj.weight"]


def test_run_command():
    assert HuggingFace().run_command("a b", {}) == "text-generation-launcher --model-id 'a b' --port 8080"


def test_it_runs_in_transformers_and_says_so(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32))
    artifact, _ = lower(HuggingFace(), checkpoint)
    session = HuggingFace().open(artifact)
    tokens = torch.arange(10, 30)
    ((start, logits),) = session.logits(tokens.numpy())
    decoder = Decoder(checkpoint)
    ours = decoder.logits(decoder.final_states(tokens[None]), decoder.head())
    assert start == 0
    torch.testing.assert_close(torch.from_numpy(logits), ours[0], atol=2e-4, rtol=1e-4)
    assert session.runtime.startswith("transformers ")
    assert session.decode(session.prefill(tokens[None].numpy())) < checkpoint.architecture.vocab_size


def test_a_model_beyond_the_free_memory_is_not_run(tiny_model, quantize, lower, monkeypatch):
    from compressor.errors import RunError
    from compressor.measure import torch_session

    artifact, _ = lower(HuggingFace(), quantize(tiny_model("llama"), Scheme(4, 32)))
    monkeypatch.setattr(torch_session, "MEMORY_SHARE", 0.0)
    with pytest.raises(RunError, match="the whole model takes"):
        HuggingFace().open(artifact)
