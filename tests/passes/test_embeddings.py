from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec
from compressor.target import Artifact
from compressor.verify import verify
from passes import embeddings
from passes.embeddings import round_rows
from targets.huggingface import HuggingFace

TOKENS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))
TABLE = "model.embed_tokens.weight"
SCHEME = Scheme(8, None, table=True)


def run(root, out, *specs):
    checkpoint = Checkpoint.open(root)
    for number, spec in enumerate(specs):
        one = make_pass(*parse_spec(spec))
        planned = one.plan(checkpoint.architecture, checkpoint.schemes)
        context = PassContext(Path(out) / str(number), {"key": "k"}, TOKENS, 0, lambda *_: None, [])
        checkpoint = one.apply(checkpoint, context)
        assert dict(checkpoint.schemes) == planned
    return checkpoint


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())


def test_each_row_is_rounded_to_nearest_on_a_scale_of_its_own(monkeypatch):
    monkeypatch.setattr(embeddings, "ELEMENTS_AT_ONCE", 640)  # several parts
    table = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 50).unsqueeze(1)
    rounded = round_rows(table, SCHEME)
    assert rounded.scales.shape == (50, 1)
    steps = (rounded.dequantize() - table).abs() / rounded.scales
    assert (steps <= 0.501).float().mean() > 0.97
    assert steps.max() < 1.1  # the largest value of a row may lie just outside


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_are_those_of_rounding_to_nearest(bits, symmetric):
    table = torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(bits, 32, symmetric, table=True)
    rounded = round_rows(table, scheme)
    assert (rounded.scales.shape, rounded.zero_points is None) == ((50, 3), symmetric)
    step = rounded.scales.repeat_interleave(32, dim=1)
    # Half a step, half another at the ends, and what eight significant bits of a scale are off after 2^bits steps.
    assert ((rounded.dequantize() - table).abs() <= step * (1.01 + 2.0 ** (bits - 9))).all()
    errors = [(one.dequantize() - table).square().sum() for one in (round_rows(table, scheme, search=True), rounded)]
    assert errors[0] < errors[1] if bits == 4 else errors[0] <= errors[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "specs",
    [
        ("embeddings",),
        ("embeddings", "gptq:group_size=32"),
        ("rtn:group_size=32", "embeddings"),
        ("embeddings:bits=4,group_size=32", "rtn:group_size=32"),
        ("embeddings:bits=4", "gptq:bits=8,group_size=32"),
        ("rtn:group_size=64,symmetric=false", "embeddings:bits=4,group_size=32,symmetric=false"),
        ("embeddings:group_size=64,symmetric=false",),
    ],
    ids=" ".join,
)
def test_the_step_opens_in_transformers_with_equal_logits(tiny_model, tmp_path, tied, specs):
    from transformers import AutoModelForCausalLM

    result = run(tiny_model("llama", tied=tied), tmp_path, *specs)
    assert result.architecture.tied_embeddings is tied
    model = AutoModelForCausalLM.from_pretrained(result.root, dtype=torch.float32)
    torch.testing.assert_close(model(TOKENS[:2]).logits, logits(result), atol=2e-4, rtol=1e-4)


def test_a_tied_head_is_the_rounded_table_itself(tiny_model, tmp_path):
    root = tiny_model("llama", tied=True)
    result = run(root, tmp_path, "embeddings")
    table = result.read([TABLE])[TABLE]
    assert isinstance(table, QuantizedWeight)
    assert result.schemes == {"model.embed_tokens": SCHEME}
    assert torch.equal(Decoder(result).head(), table.dequantize())
    original = Checkpoint.open(root)
    assert "lm_head.weight" not in result.tensors
    rows, width = original.tensors[TABLE].shape
    assert original.nbytes - result.nbytes == 4 * rows * width - (rows * width + 2 * 4 * rows)


def test_hidden_states_begin_with_the_rounded_rows(tiny_model, tmp_path):
    result = run(tiny_model("llama"), tmp_path, "embeddings")
    table = result.read([TABLE])[TABLE].dequantize()
    assert torch.equal(Decoder(result).embed(TOKENS), table[TOKENS])


@pytest.mark.parametrize("tied", [True, False])
def test_a_later_pass_keeps_its_integers_and_a_16_bit_model_its_dtype(tiny_model, tmp_path, tied):
    first = run(tiny_model("llama", tied=tied), tmp_path / "a", "embeddings")
    again = run(first.root, tmp_path / "b", "gptq:group_size=32")
    assert first.read([TABLE])[TABLE].same_bits(again.read([TABLE])[TABLE])
    assert again.dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", ["", ":bits=4,group_size=32", ":bits=4,group_size=64,symmetric=false"])
def test_the_artifact_is_read_back_bit_for_bit(tiny_model, tmp_path, tied, options):
    checkpoint = run(tiny_model("llama", tied=tied), tmp_path, f"embeddings{options}", "gptq:group_size=32")
    out = tmp_path / "artifact"
    out.mkdir()
    target = HuggingFace()
    target.lower(checkpoint, out, lambda *_: None)
    artifact = Artifact(out, "hf")
    assert verify(target, artifact, checkpoint, lambda *_: None).mismatches == []
    assert target.run_command("here", checkpoint.config) == "transformers serve here --port 8080"
    if tied:
        tensors = load_file(out / "model.safetensors")
        part = "scale" if checkpoint.schemes["model.embed_tokens"].symmetric else "zero_point"
        tensors[f"lm_head.weight_{part}"][3] += 1
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RunError, match=rf"lm_head\.weight_{part} differs"):
            list(target.read_back(artifact))


@pytest.mark.parametrize("spec", ["rtn:group_size=32,lm_head=true", "gptq:group_size=32,lm_head=8"])
def test_a_tied_head_is_rounded_once(tiny_model, tmp_path, spec):
    checkpoint = run(tiny_model("llama", tied=True), tmp_path, "embeddings")
    with pytest.raises(InputError, match="tied to the embedding, which is already int8"):
        make_pass(*parse_spec(spec)).plan(checkpoint.architecture, checkpoint.schemes)


def test_an_untied_head_can_have_bits_of_its_own(tiny_model, tmp_path):
    checkpoint = run(tiny_model("llama", tied=False), tmp_path, "embeddings", "rtn:group_size=32,lm_head=8")
    assert checkpoint.schemes["lm_head"] == Scheme(8, 32)
    assert checkpoint.schemes["model.embed_tokens"] == SCHEME


def test_a_group_that_does_not_divide_the_width_is_refused(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="Group size 128 does not divide the input width 64") as caught:
        make_pass(*parse_spec("embeddings:bits=4,group_size=128")).plan(architecture, {})
    assert caught.value.hint == "group_size 64 or 32 works"


def test_twice_is_refused(tiny_model, tmp_path):
    checkpoint = run(tiny_model("llama"), tmp_path, "embeddings")
    with pytest.raises(InputError, match="rounded once"):
        make_pass("embeddings", {}).plan(checkpoint.architecture, checkpoint.schemes)


@pytest.mark.parametrize("target", ["trt-int4", "vllm-int4", "onnx-fp32"])
def test_other_targets_refuse_it_before_work(tiny_model, target):
    from compressor.plan import check_plan
    from compressor.registry import make_target

    checkpoint = Checkpoint.open(tiny_model("llama", hidden_size=128, intermediate_size=256))
    specs = ["embeddings", *([] if target == "onnx-fp32" else ["rtn:group_size=64"])]
    passes = [make_pass(*parse_spec(spec)) for spec in specs]
    with pytest.raises(InputError, match=f"{target} cannot take this: It holds no quantized embedding") as caught:
        check_plan(checkpoint, passes, make_target(target, {}))
    assert str(caught.value).count("; leave out") == 1
    check_plan(checkpoint, passes, make_target("hf", {}))


def test_a_rewritten_16_bit_folder_keeps_scales_exact(tiny_model, tmp_path):
    root = tiny_model("llama")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(root / "model.safetensors").items()}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    result = run(root, tmp_path, "embeddings")
    assert result.dtype == torch.bfloat16
    assert result.tensors["model.embed_tokens.weight_scale"].dtype == torch.bfloat16
    assert result.tensors[TABLE].dtype == torch.int8
