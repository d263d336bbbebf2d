"""Engines of the later families: the parser takes their graphs, and every integer lies in the engine."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from compressor.quantized import Activations, Scheme
from targets.tensorrt_rtx.description import PACKAGE
from targets.tensorrt_rtx.target import TrtRtxInt4, TrtRtxInt8

pytestmark = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="TensorRT-RTX is not installed: [trtrtx]")
INT4, INT8 = TrtRtxInt4(sm=(89,), max_length=64), TrtRtxInt8(sm=(89,), max_length=64)
STATIC = Scheme(8, None, activations=Activations(dynamic=False))


@pytest.mark.parametrize(("target", "scheme"), [(INT4, Scheme(4, 32)), (INT8, STATIC)], ids=["int4", "W8A8"])
@pytest.mark.parametrize("family", ["phi3", "gpt2", "gemma2", "gemma3_text"])
def test_an_engine_of_the_family(tiny_model, quantize, lower, verified, family, target, scheme):
    checkpoint = quantize(tiny_model(family), scheme)
    artifact, notes = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    assert target.broken_rules(artifact) == []
    assert any(f"the integers of {len(checkpoint.schemes)} linears lie in it bit for bit" in note for note in notes)
