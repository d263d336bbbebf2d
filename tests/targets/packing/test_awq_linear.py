"""The AWQ GEMM layout: against words written by hand, and there and back through the library's reader."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing import awq_folder
from targets.packing.awq_linear import pack_linear, stored_zero_points

NAME = "model.layers.0.mlp.up_proj"


def random_weight(scheme: Scheme, rows: int, columns: int, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = columns // scheme.group_size
    codes = torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int8)
    zero_points = torch.randint(-8, 8, (rows, groups), generator=generator, dtype=torch.int8)
    scales = torch.rand((rows, groups), generator=generator).half().float()
    return QuantizedWeight(codes, scales, None if scheme.symmetric else zero_points, scheme)


def write(folder: Path, weight: QuantizedWeight, **settings_: object) -> None:
    parts = {**pack_linear(weight), "scales": weight.scales.T.contiguous().half()}
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, folder / "model.safetensors")
    config = {"bits": 4, "group_size": weight.scheme.group_size, "zero_point": True, "version": "gemm"} | settings_
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


def as_hex(words: torch.Tensor) -> list[list[str]]:
    return [[f"{word & 0xFFFFFFFF:08x}" for word in row] for row in words.tolist()]


def test_words_by_hand():
    """Eight output channels whose integers are their own number, in a word as 0, 2, 4, 6, 1, 3, 5, 7 from below."""
    codes = torch.stack([torch.arange(-8, 0), torch.arange(0, 8)], dim=1).to(torch.int8)
    weight = QuantizedWeight(codes, torch.ones(8, 1), codes[:, 1:], Scheme(4, 2, symmetric=False))
    found = pack_linear(weight)
    assert as_hex(found["qweight"]) == [["75316420"], ["fdb9eca8"]]
    assert as_hex(found["qzeros"]) == [["fdb9eca8"]]


def test_a_symmetric_weight_stores_eights():
    weight = random_weight(Scheme(4, 32), 16, 64, seed=0)
    assert as_hex(pack_linear(weight)["qzeros"]) == [["88888888"] * 2] * 2


@settings(max_examples=40, deadline=None)
@given(
    scheme=st.builds(Scheme, st.just(4), st.sampled_from([32, 64, 128]), st.booleans()),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_there_and_back(scheme, rows, groups, seed):
    weight = random_weight(scheme, 8 * rows, groups * scheme.group_size, seed)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), weight)
        ((name, found),) = awq_folder.read_folder(Path(folder))
    assert name == f"{NAME}.weight"
    assert torch.equal(found.codes, weight.codes)
    assert torch.equal(found.scales, weight.scales)
    assert torch.equal(found.zero_points, stored_zero_points(weight))


@pytest.mark.parametrize("changed", [{"bits": 8}, {"version": "gemv"}, {"zero_point": False}])
def test_the_reader_takes_the_one_layout_only(tmp_path, changed):
    write(tmp_path, random_weight(Scheme(4, 32), 16, 64, seed=0), **changed)
    with pytest.raises(RunError, match="as gemm"):
        list(awq_folder.read_folder(tmp_path))
