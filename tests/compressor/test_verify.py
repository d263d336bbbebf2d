from types import SimpleNamespace

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.quantized import QuantizedWeight, Scheme
from compressor.verify import same_bits, verify


@pytest.fixture
def checkpoint(tiny_model):
    return Checkpoint.open(tiny_model("llama"))


def check(checkpoint, change):
    """Verify a target that reads back the checkpoint's own weights, after `change` of them."""
    weights = {name: weight for block in checkpoint.blocks() for name, weight in block.weights.items()}
    change(weights)
    target = SimpleNamespace(
        reader_of=lambda _: "r", read_back=lambda _: weights.items(), expected=lambda _, weight, shape: weight
    )
    return verify(target, None, checkpoint, lambda *_: None)


NORM = "model.norm.weight"


def test_equal_weights_are_all_counted(checkpoint):
    verdict = check(checkpoint, lambda weights: None)
    assert (verdict.weights, verdict.mismatches) == (len(checkpoint.architecture.tensor_shapes()), [])


@pytest.mark.parametrize(
    ("change", "mismatch"),
    [
        (lambda weights: weights.pop(NORM), f"{NORM} (missing)"),
        (lambda weights: weights.update(extra=torch.ones(1)), "extra (not in the checkpoint)"),
        (lambda weights: weights.update({NORM: weights[NORM].double()}), NORM),
        (lambda weights: weights.update({NORM: weights[NORM].nextafter(torch.tensor(9.0))}), NORM),
        (lambda weights: weights.update({NORM: weights[NORM][None]}), NORM),
    ],
)
def test_any_difference_is_named(checkpoint, change, mismatch):
    assert check(checkpoint, change).mismatches == [mismatch]


def test_negative_zero_is_not_zero():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_quantized_weights_differ_in_codes_scales_or_zero_points():
    def weight(code=1, scale=0.5, zero=2):
        return QuantizedWeight(
            torch.tensor([[code, 3]], dtype=torch.int8),
            torch.tensor([[scale]]),
            torch.tensor([[zero]], dtype=torch.int8),
            Scheme(4, None, False),
        )

    assert same_bits(weight(), weight())
    for other in (weight(code=2), weight(scale=0.25), weight(zero=1)):
        assert not same_bits(weight(), other)
    assert not same_bits(weight(), weight().dequantize())
