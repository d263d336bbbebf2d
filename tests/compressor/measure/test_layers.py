"""Errors of layers, next to the same in transformers' whole models."""

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import full_model
from compressor.measure.layers import layer_errors
from compressor.pass_ import PassContext
from passes.rtn import RTN

TOKENS = torch.arange(96).reshape(3, 32) % 64


def ignore(*_):
    pass


@pytest.fixture
def pair(tiny_model, tmp_path):
    before = Checkpoint.open(tiny_model("llama"))
    context = PassContext(tmp_path / "rounded", {}, None, 0, ignore, [])
    return before, RTN(bits=4, group_size=32).apply(before, context)


def states(checkpoint):
    """Of the embedding and behind each layer, as transformers tells them; the last one is behind the norm as well."""
    with torch.no_grad():
        return full_model(checkpoint).float()(TOKENS, output_hidden_states=True).hidden_states


def test_drift_is_how_far_apart_the_residual_streams_of_two_models_are(pair):
    before, after = map(states, pair)
    found = layer_errors(*pair, TOKENS, ignore)
    assert [one.layer for one in found] == list(range(pair[0].architecture.layers))
    for one in found[:-1]:
        exact, rounded = before[one.layer + 1], after[one.layer + 1]
        assert one.drift == pytest.approx(((rounded - exact).norm(dim=-1) / exact.norm(dim=-1)).median().item(), 1e-3)


def test_the_first_layers_own_error_is_all_of_its_drift(pair):
    read, left = states(pair[0])[:2]
    first = layer_errors(*pair, TOKENS, ignore)[0]
    difference = (states(pair[1])[1] - left).norm(dim=-1)
    assert first.own == pytest.approx((difference / (left - read).norm(dim=-1)).median().item(), 1e-3)
    assert first.own > first.drift > 0


def test_equal_models_have_no_error(pair):
    for one in layer_errors(pair[0], pair[0], TOKENS, ignore):
        assert one.own == one.drift == 0
