import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from calibration.attention import QUERIES_AT_ONCE, blocked_attention
from calibration.walk import Stream
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder


@pytest.mark.parametrize("length", [1, QUERIES_AT_ONCE, 3 * QUERIES_AT_ONCE - 7])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
def test_equals_torch(heads, shared, length):
    generator = torch.Generator().manual_seed(0)
    # As a projection leaves them: heads after positions in memory.
    query, key, value = (
        torch.randn(2, length, count, 16, generator=generator).transpose(1, 2) for count in (heads, shared, shared)
    )
    wanted = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.2, enable_gqa=True)
    assert torch.allclose(blocked_attention(query, key, value, 0.2), wanted.transpose(1, 2), atol=1e-5)


def test_sixteen_bits_are_as_exact_as_the_inputs():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 200, 64, generator=generator).bfloat16() for _ in range(3))
    exact = scaled_dot_product_attention(query.double(), key.double(), value.double(), is_causal=True).transpose(1, 2)
    found = blocked_attention(query, key, value, 1 / 8)
    assert float((found - exact).norm() / exact.norm()) < 2**-7


@pytest.mark.parametrize("window", [None, 24])
def test_layers_run_with_it_and_windows_are_honoured(window, tiny_model, monkeypatch):
    """In 16 bits the walk gives what the decoder gives in 32, where attention is windowed too."""
    family = "llama" if window is None else "mistral"
    options = {} if window is None else {"sliding_window": window}
    decoder = Decoder(Checkpoint.open(tiny_model(family, **options)))
    called = []
    monkeypatch.setattr(
        "calibration.attention.blocked_attention",
        lambda *arguments: called.append(1) or blocked_attention(*arguments),
    )
    tokens = torch.randint(0, 256, (2, 96), generator=torch.Generator().manual_seed(0))
    stream, block = Stream(decoder, tokens, torch.bfloat16), decoder.checkpoint.block("layers.0")
    wanted = stream.hidden.clone()
    decoder.run(decoder.layer(block), 0, wanted)
    for _ in stream.enter(block).stages():
        pass
    assert bool(called) == (window is None)
    assert float((stream.hidden - wanted).norm() / wanted.norm()) < 0.01
