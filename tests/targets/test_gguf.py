"""gguf-q4_0 and gguf-q8_0: one file, read back through the gguf package and by llmc's own importer."""

import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import dense
from compressor.errors import InputError, RunError
from compressor.gguf import import_gguf
from compressor.gguf.container import GgufFile
from compressor.pass_ import PassContext
from compressor.quantized import Activations, QuantizedWeight, Scheme
from compressor.registry import make_pass, make_target
from targets.gguf import GgufQ4, GgufQ8
from targets.gguf.reader import read_file

EMBEDDING = "model.embed_tokens"

# llama.cpp divides scores of Gemma by the root of the head's width.
GEMMA = {"query_pre_attn_scalar": 16}
FAMILIES = {"llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {}, "phi3": {}, "gpt2": {}, "gemma2": GEMMA,
            "gemma3_text": GEMMA}  # fmt: skip


def silent(*_):
    pass


def imported(artifact, tmp_path):
    """The checkpoint that llmc's own importer makes of an artifact."""
    return import_gguf(artifact.root / "model.gguf", tmp_path / "imported", silent)[0]


def assert_means_the_same(found, checkpoint):
    names = list(checkpoint.architecture.tensor_shapes())
    expected, found = checkpoint.read(names), found.read(names)
    for name in names:
        if isinstance(found[name], QuantizedWeight):
            assert found[name].same_bits(expected[name]), name
            continue
        kept = dense(expected[name])
        if name.endswith("norm.weight"):
            # What llama.cpp holds of Gemma's norms are gains.
            shift = checkpoint.architecture.norm_shift
            assert torch.equal(found[name], kept + shift - shift), name
            continue
        # A quantized embedding is dequantized on the way in; unquantized matrices of a float32 checkpoint are bfloat16.
        is_stored_as_it_is = kept.dim() == 1 or isinstance(expected[name], QuantizedWeight) or "wpe" in name
        assert torch.equal(found[name].float(), kept if is_stored_as_it_is else kept.bfloat16().float()), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, tmp_path, family, tied):
    if family == "gemma2" and not tied:
        pytest.skip("llama.cpp has no head of its own for it")
    checkpoint = quantize(tiny_model(family, tied=tied, **FAMILIES[family]), Scheme(4, 32))
    assert GgufQ4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, notes = lower(GgufQ4(), checkpoint)
    verification = verified(GgufQ4(), artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.parameters)
    assert notes == [f"{1 if tied else 2} unquantized tensors cast float32 -> bfloat16"]
    assert [path.name for path in artifact.root.iterdir()] == ["model.gguf"]
    assert_means_the_same(imported(artifact, tmp_path), checkpoint)


@pytest.mark.parametrize("group_size", [32, 64, None])
@pytest.mark.parametrize("target", [GgufQ4(), GgufQ8()], ids=lambda target: target.name)
def test_every_group_is_whole_blocks(tiny_model, quantize, lower, verified, tmp_path, target, group_size):
    checkpoint = quantize(tiny_model("llama"), Scheme(4 if target == GgufQ4() else 8, group_size))
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    assert_means_the_same(imported(artifact, tmp_path), checkpoint)


# What the loader of transformers does not read of a file has to be at its default.
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
        ("phi3", {"partial_rotary_factor": 1.0}),
        ("gpt2", {"n_inner": 256}),
        ("gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
                    "head_dim": 256}),
        ("gemma3_text", {"final_logit_softcapping": None, "query_pre_attn_scalar": 256, "head_dim": 256,
                         "layer_types": ["sliding_attention"] * 2}),
    ],
)  # fmt: skip
def test_transformers_opens_it(tiny_model, quantize, lower, recast, logits_of, family, overrides):
    from transformers import AutoModelForCausalLM

    root = recast(tiny_model(family, **overrides), torch.bfloat16)
    checkpoint = quantize(root, Scheme(4, 64), {"down_proj": Scheme(8, 32)})
    artifact, _ = lower(GgufQ4(), checkpoint)
    model = AutoModelForCausalLM.from_pretrained(artifact.root, gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.arange(0, 250, 10).view(1, -1)).logits
    assert torch.equal(logits, logits_of(checkpoint))


def test_mixed_precision_and_skipped_layers(tiny_model, quantize, lower, verified, tmp_path):
    but = {"down_proj": Scheme(8, 64), "q_proj": Scheme(8, None), "layers.1.mlp.up_proj": None}
    checkpoint = quantize(tiny_model("qwen2", tied=False), Scheme(4, 32), but)
    assert GgufQ4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(GgufQ4(), checkpoint)
    assert verified(GgufQ4(), artifact, checkpoint).mismatches == []
    kinds = {name: tensor.kind for name, tensor in GgufFile.open(artifact.root / "model.gguf").tensors.items()}
    assert kinds["blk.0.attn_k.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_up.weight"] == kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.attn_q.bias"] == kinds["blk.0.ffn_norm.weight"] == "F32"
    assert_means_the_same(imported(artifact, tmp_path), checkpoint)


@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_embedding_is_blocks_that_repeat_its_row_scales(tiny_model, quantize, lower, verified, tmp_path, tied):
    step = quantize(tiny_model("llama", tied=tied), Scheme(8, 64))
    context = PassContext(tmp_path / "step", {}, None, 0, silent, [])
    checkpoint = make_pass("embeddings", {}).apply(step, context)
    assert EMBEDDING in checkpoint.schemes
    artifact, notes = lower(GgufQ8(), checkpoint)
    assert verified(GgufQ8(), artifact, checkpoint).mismatches == []
    assert ("output.weight" in GgufFile.open(artifact.root / "model.gguf").tensors) is not tied
    assert notes == ([] if tied else ["1 unquantized tensors cast float32 -> bfloat16"])
    assert_means_the_same(imported(artifact, tmp_path), checkpoint)


@pytest.mark.parametrize("tied", [True, False])
def test_an_int4_embedding_is_q4_0(tiny_model, quantize, lower, verified, tmp_path, tied):
    table = Scheme(4, 32, table=True)
    checkpoint = quantize(tiny_model("llama", tied=tied), Scheme(4, 32), {EMBEDDING: table})
    assert GgufQ4().embedding_problems(checkpoint.architecture, table) == []
    artifact, _ = lower(GgufQ4(), checkpoint)
    assert verified(GgufQ4(), artifact, checkpoint).mismatches == []
    assert GgufFile.open(artifact.root / "model.gguf").tensors["token_embd.weight"].kind == "Q4_0"
    assert_means_the_same(imported(artifact, tmp_path), checkpoint)


def test_embeddings_that_no_block_holds_are_refused(tiny_model):
    shape = Checkpoint.open(tiny_model("llama")).architecture
    (problem,) = GgufQ4().embedding_problems(shape, Scheme(4, 32, False, table=True))
    assert problem == "model.embed_tokens: Q4_0 has no zero points; symmetric=true works."
    (problem,) = GgufQ8().embedding_problems(shape, Scheme(4, 32, table=True))
    assert problem.startswith("model.embed_tokens: int4 is not what this target holds")


def test_rows_of_a_llama_are_rotary_pairs(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(8, 32))
    artifact, _ = lower(GgufQ8(), checkpoint)
    name = "model.layers.0.self_attn.k_proj.weight"  # two heads of 16
    halves = checkpoint.read([name])[name].dequantize().numpy()
    pairs = GgufFile.open(artifact.root / "model.gguf").read("blk.0.attn_k.weight")
    assert np.array_equal(pairs[:4], halves[[0, 8, 1, 9]])
    assert np.array_equal(pairs[-2:], halves[[23, 31]])


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "within", "found"),
    [
        ("blk.0.attn_q.weight", 5, "model.layers.0.self_attn.q_proj.weight"),
        ("blk.1.ffn_down.weight", 18 * 9 + 17, "model.layers.1.mlp.down_proj.weight"),
        ("blk.1.ffn_gate.weight", 18, "model.layers.1.mlp.gate_proj.weight"),
        ("token_embd.weight", 1001, "model.embed_tokens.weight"),
        ("blk.0.attn_norm.weight", 8, "model.layers.0.input_layernorm.weight"),
    ],
)
def test_a_flipped_bit_is_found(tiny_model, quantize, lower, verified, tensor, within, found):
    """In a nibble, in a scale that is repeated, in a float."""
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64))
    artifact, _ = lower(GgufQ4(), checkpoint)
    path = artifact.root / "model.gguf"
    content = bytearray(path.read_bytes())
    content[GgufFile.open(path).tensors[tensor].offset + within] ^= 0x10
    path.write_bytes(content)
    assert verified(GgufQ4(), artifact, checkpoint).mismatches == [found]


def test_a_file_from_elsewhere_is_not_taken_for_an_artifact(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RunError, match=r"has no llmc.group_sizes"):
        list(read_file(tmp_path / "other.gguf"))


# -- casts and notes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_16_bit_model_keeps_its_dtype_but_for_its_norms(tiny_model, quantize, lower, verified, recast, stored):
    checkpoint = quantize(recast(tiny_model("llama"), stored), Scheme(8, 32))
    artifact, notes = lower(GgufQ8(), checkpoint)
    assert verified(GgufQ8(), artifact, checkpoint).mismatches == []
    name = str(stored).removeprefix("torch.")
    assert notes == [f"norms and biases widened {name} -> float32, which llama.cpp wants"]
    kinds = {name: tensor.kind for name, tensor in GgufFile.open(artifact.root / "model.gguf").tensors.items()}
    assert kinds["token_embd.weight"] == {torch.float16: "F16", torch.bfloat16: "BF16"}[stored]
    assert kinds["output_norm.weight"] == "F32"


def test_the_dtype_can_be_chosen(tiny_model, quantize, lower, verified):
    target = make_target("gguf-q8_0", {"dtype": "float16"})
    checkpoint = quantize(tiny_model("llama"), Scheme(8, 32))
    artifact, notes = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    assert notes == ["1 unquantized tensors cast float32 -> float16"]


def test_one_tensor_is_in_memory_at_a_time(tiny_model, quantize, tmp_path, monkeypatch):
    """Data goes to the file as its block is read; the header, which comes first, is written from shapes alone."""
    import gguf

    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32))
    events = []
    read, write = Checkpoint.read, gguf.GGUFWriter.write_tensor_data

    def counted(self, data):
        events.append("write")
        write(self, data)

    monkeypatch.setattr(Checkpoint, "read", lambda self, names: (events.append("read"), read(self, names))[1])
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", counted)
    GgufQ4().lower(checkpoint, tmp_path, silent)
    assert events == ["read", "write", *2 * (["read"] + 9 * ["write"]), "read", "write"]


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "scheme", "reason"),
    [
        (
            "gguf-q8_0",
            Scheme(4, 32),
            "int4 is not what this target holds; gptq:bits=8,group_size=32 or the target hf",
        ),
        ("gguf-q4_0", Scheme(8, None, type="float"), "fp8 is not what this target holds; gptq:bits=4,group_size=32"),
        ("gguf-q4_0", Scheme(4, 64, type="nf4"), "nf4 is not what this target holds"),
        ("gguf-q8_0", Scheme(8, None, activations=Activations()), "int8 activations per token are not what llama.cpp"),
        ("gguf-q4_0", Scheme(4, 32, symmetric=False), "Q4_0 has no zero points; symmetric=true works"),
        ("gguf-q4_0", Scheme(4, 16), "group 16 is no multiple of the 32 of a block; group_size 64 or 32 works"),
        ("gguf-q4_0", Scheme(8, 32), "No layer is int4; the target gguf-q8_0 takes these"),
    ],
)
def test_schemes_that_are_refused(tiny_model, target, scheme, reason):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    schemes = {name: scheme for name in architecture.linears() if name != "lm_head"}
    assert reason in " ".join(make_target(target, {}).problems(architecture, schemes))


def test_widths_and_absent_passes_are_refused_and_a_quantized_head_is_not(tiny_model, monkeypatch):
    architecture = Checkpoint.open(tiny_model("llama", intermediate_size=80)).architecture
    schemes = dict.fromkeys(architecture.linears(), Scheme(4, None))
    (problem,) = GgufQ4().problems(architecture, schemes)
    expected = "model.layers.0.mlp.down_proj and 1 more layer: the input width 80 is no multiple of the 32 of a block"
    assert problem.startswith(expected)
    assert "add a quantizing pass" in GgufQ4().problems(architecture, {})[0]
    monkeypatch.setattr("targets.gguf.target.find_spec", lambda name: None)
    assert GgufQ4().why_not_made() == (
        "GGUF files are written by the package gguf, which is missing; pip install 'llmc-compiler[gguf]'."
    )


def test_scales_beyond_float16_are_refused(tiny_model, quantize, lower):
    """As a folder from another tool may have them: float32 scales that float16 would round."""
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64), shared_scales=False)
    with pytest.raises(InputError, match=r"q_proj.weight cannot be laid out .* not exact in float16"):
        lower(GgufQ4(), checkpoint)


def test_run_command(tiny_model, quantize):
    config = quantize(tiny_model("llama"), Scheme(4, 32)).config
    assert GgufQ4().run_command("a b", config) == "llama-server -m 'a b/model.gguf' --port 8080 -c 512"


def test_an_8_bit_cache_is_asked_for_where_it_is_run(tiny_model, quantize):
    target = make_target("gguf-q4_0", {"kv_cache": "q8_0"})
    config = quantize(tiny_model("llama"), Scheme(4, 32)).config
    assert target.run_command("a", config).endswith("-c 512 -fa on --cache-type-k q8_0 --cache-type-v q8_0")
    assert [(one.label, dict(one.options)) for one in target.variants] == [
        ("f16 cache", {"kv_cache": "f16"}),
        ("", {}),
    ]


def test_an_8_bit_cache_of_heads_that_are_no_whole_blocks_is_refused(tiny_model):
    narrow = Checkpoint.open(tiny_model("llama", head_dim=16)).architecture
    schemes = {name: Scheme(4, 32) for name in narrow.linears() if name != "lm_head"}
    assert GgufQ4().problems(narrow, schemes) == []
    (problem,) = make_target("gguf-q4_0", {"kv_cache": "q8_0"}).problems(narrow, schemes)
    assert "the width of a head, is no multiple; gguf-q4_0:kv_cache=f16 works" in problem
