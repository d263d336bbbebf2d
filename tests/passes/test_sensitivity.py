import pytest
import torch

from calibration.moments import SecondMoments
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, dense
from compressor.errors import RunError
from compressor.quantized import Scheme
from passes import sensitivity
from passes.gptq import solve
from passes.hessian import Hessian
from passes.mixed import rounding_errors
from passes.sensitivity import importances, split

TOKENS = torch.randint(0, 256, (48, 64), generator=torch.Generator().manual_seed(0))
SCHEME = Scheme(4, 32)


def rounded_by_gptq(weight, gram, scheme):
    return solve(weight, Hessian.of(SecondMoments.of(gram), 0.01, act_order=True), scheme, sweeps=0)


def measure(root, tokens=TOKENS, damping=0.01):
    """Importance of every group of linears that read the same input, by the first of their names."""
    walked = importances(Checkpoint.open(root), tokens, seed=0, damping=damping, act_order=True, dtype=torch.float32)
    return {next(iter(found.values)): found for _, stages in walked for found in stages}


def estimate(found, checkpoint):
    weights = checkpoint.read([f"{name}.weight" for name in found.values])
    return sum(
        found.divergence(name, rounding_errors(dense(weights[f"{name}.weight"]), SCHEME, found.energy, search=True))
        for name in found.values
    )


@torch.no_grad()
def log_chances(checkpoint, changed=None):
    """log p of every next token, float32 [tokens, vocab_size], some weights replaced."""
    decoder = Decoder(checkpoint)
    hidden = decoder.embed(split(TOKENS)[1])
    for index in range(checkpoint.architecture.layers):
        block = checkpoint.block(f"layers.{index}")
        mine = {name: weight for name, weight in (changed or {}).items() if name in block.weights}
        decoder.run(decoder.layer(block.with_weights(mine)), index, hidden)
    decoder.final_norm(hidden)
    return (hidden.flatten(0, 1) @ decoder.head().T).log_softmax(-1)


def gram_of(checkpoint, linear):
    """Second moments of what a linear reads."""
    from calibration.walk import Stream

    stream = Stream(Decoder(checkpoint), split(TOKENS)[0], torch.float32)
    for index in range(checkpoint.architecture.layers):
        prefix = f"model.layers.{index}."
        for stage in stream.enter(checkpoint.block(f"layers.{index}")).stages():
            if linear in [prefix + name for name in stage.linears]:
                found = stage.statistics.gram.clone()
    return found


def measured(checkpoint, linears):
    """The divergence when GPTQ rounds these linears and nothing else."""
    gram = gram_of(checkpoint, linears[0])
    weights = checkpoint.read([f"{name}.weight" for name in linears])
    rounded = {name: rounded_by_gptq(dense(weight), gram, SCHEME).dequantize() for name, weight in weights.items()}
    original, changed = log_chances(checkpoint), log_chances(checkpoint, rounded)
    return float((original.exp() * (original - changed)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_estimate_is_the_divergence_that_is_then_measured(tiny_model, family):
    """Group by group, against the whole model run with only that group rounded by GPTQ."""
    root = tiny_model(family)
    checkpoint = Checkpoint.open(root)
    pairs = [
        (estimate(found, checkpoint), measured(checkpoint, list(found.values))) for found in measure(root).values()
    ]
    estimated, true = (torch.tensor(values).log() for values in zip(*pairs, strict=True))
    assert len(pairs) == 8
    assert (estimated - true).abs().max() < 0.2
    assert true.max() - true.min() > 1.5  # so that a constant would not do


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_without_correlated_inputs_an_error_stays_where_it_is(damping):
    gram = torch.diag(torch.rand(8, generator=torch.Generator().manual_seed(0)) + 0.1)
    for act_order in (True, False):
        assert torch.allclose(sensitivity._error_spread(gram, damping, act_order), torch.eye(8), atol=1e-6)


def test_rounding_errors_spread_as_gptq_spreads_them():
    """The whole error of a solved weight is what each weight's own rounding makes of it."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    gram = inputs.T @ inputs / 512
    weight = torch.randn(32, 64, generator=generator)
    errors = rounded_by_gptq(weight, gram, Scheme(8, 32)).dequantize() - weight
    own = torch.linalg.solve(sensitivity._error_spread(gram, 0.01, True), errors, left=False)
    half_steps = rounded_by_gptq(weight, gram, Scheme(8, 32)).scales.repeat_interleave(32, dim=1) / 2
    assert (own.abs() <= half_steps * 1.001).float().mean() > 0.98  # all but clipped ones
    assert (errors.abs() <= half_steps).float().mean() < 0.9


@pytest.mark.parametrize(
    ("shape", "windows", "texts"),
    [
        ((128, 512), 112, (16, 128)),
        ((48, 512), 36, (16, 128)),
        ((16, 512), 12, (16, 128)),
        ((8, 64), 6, (2, 64)),
        ((2, 300), 1, (2, 128)),
        ((1, 16), 1, (1, 16)),
    ],
)
def test_gradients_are_taken_on_text_of_their_own(shape, windows, texts):
    tokens = torch.arange(shape[0] * shape[1]).view(shape)
    first, second = split(tokens)
    assert (len(first), tuple(second.shape)) == (windows, texts)
    if shape[0] > 1:
        assert not set(first.flatten().tolist()) & set(second.flatten().tolist())


def test_fewer_and_shorter_texts_than_usual_will_do(tiny_model):
    found = measure(tiny_model("llama"), TOKENS[:2, :16])
    assert all((values > 0).any() for one in found.values() for values in one.values.values())


def test_inputs_that_overflow_name_their_layer(tiny_model):
    from safetensors.torch import load_file, save_file

    root = tiny_model("llama")
    tensors = load_file(root / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][:8].fill_(1e38)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"model\.layers\.1\.self_attn\.q_proj hold NaN or Inf"):
        measure(root)
