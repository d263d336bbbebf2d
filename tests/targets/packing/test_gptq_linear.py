"""The GPTQ layout: against words written by hand, and there and back through the reader."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing import gptq_folder
from targets.packing.gptq_linear import holds_zero, pack_linear

NAME = "model.layers.0.mlp.up_proj"


def random_weight(scheme: Scheme, rows: int, columns: int, seed: int, lowest_zero: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if scheme.group_size is None else columns // scheme.group_size
    codes = torch.randint(scheme.lowest, scheme.highest + 1, (rows, columns), generator=generator, dtype=torch.int8)
    low, high = lowest_zero + scheme.lowest, scheme.highest + 1
    zero_points = torch.randint(low, high, (rows, groups), generator=generator, dtype=torch.int8)
    scales = torch.rand((rows, groups), generator=generator).half().float()
    return QuantizedWeight(codes, scales, None if scheme.symmetric else zero_points, scheme)


def write(folder: Path, weight: QuantizedWeight, version: str, **settings_: object) -> None:
    parts = {**pack_linear(weight, version), "scales": weight.scales.T.contiguous().half()}
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, folder / "model.safetensors")
    scheme = weight.scheme
    config = {"bits": scheme.bits, "sym": scheme.symmetric, "group_size": scheme.group_size or -1}
    config |= {"checkpoint_format": version} | settings_
    (folder / "quantize_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


def read(folder: Path) -> QuantizedWeight:
    ((name, weight),) = gptq_folder.read_folder(folder)
    assert name == f"{NAME}.weight"
    return weight


def as_hex(words: torch.Tensor) -> list[list[str]]:
    return [[f"{word & 0xFFFFFFFF:08x}" for word in row] for row in words.tolist()]


def test_words_by_hand():
    """Two output channels of sixteen inputs in two groups: integers 0 to 15 upwards, and downwards."""
    codes = torch.stack([torch.arange(-8, 8), torch.arange(7, -9, -1)] * 4).to(torch.int8)
    zero_points = torch.tensor([[-7, 7], [0, 1]] * 4, dtype=torch.int8)
    weight = QuantizedWeight(codes, torch.ones(8, 2), zero_points, Scheme(4, 8, symmetric=False))
    found = pack_linear(weight, "gptq_v2")
    assert as_hex(found["qweight"]) == [["76543210", "89abcdef"] * 4, ["fedcba98", "01234567"] * 4]
    assert as_hex(found["qzeros"]) == [["81818181"], ["9f9f9f9f"]]
    assert found["g_idx"].tolist() == [0] * 8 + [1] * 8
    assert as_hex(pack_linear(weight, "gptq")["qzeros"]) == [["70707070"], ["8e8e8e8e"]]


MIDDLES = [(4, "gptq", "77777777"), (4, "gptq_v2", "88888888"), (8, "gptq", "7f7f7f7f"), (8, "gptq_v2", "80808080")]


@pytest.mark.parametrize(("bits", "version", "word"), MIDDLES)
def test_a_symmetric_weight_stores_the_middle(bits, version, word):
    weight = random_weight(Scheme(bits, 32), 32, 64, 0, 0)
    assert {word for row in as_hex(pack_linear(weight, version)["qzeros"]) for word in row} == {word}


schemes = st.builds(Scheme, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128, None]), st.booleans())


@settings(max_examples=40, deadline=None)
@given(scheme=schemes, rows=st.integers(1, 3), groups=st.integers(1, 3), v1=st.booleans(), seed=st.integers(0, 999))
def test_there_and_back(scheme, rows, groups, v1, seed):
    weight = random_weight(scheme, 32 * rows, groups * (scheme.group_size or 32), seed, int(v1))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), weight, "gptq" if v1 else "gptq_v2")
        found = read(Path(folder))
    assert weight.same_bits(found)
    assert found.scheme == scheme


@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_of_0_is_stored_by_the_second_version_only(bits, tmp_path):
    weight = random_weight(Scheme(bits, 32, symmetric=False), 32, 64, 0, 1)
    assert not holds_zero(weight)
    weight.zero_points[3, 1] = weight.scheme.lowest
    assert holds_zero(weight)
    with pytest.raises(ValueError, match="version 1"):
        pack_linear(weight, "gptq")
    write(tmp_path, weight, "gptq_v2")
    assert weight.same_bits(read(tmp_path))


def test_words_of_every_bit_pattern():
    words = np.array([[-1, 0, 0x76543210, -2147483648]], np.int32)
    assert gptq_folder.unpack_integers(words, 4).tolist() == [[15] * 8 + [0] * 8 + list(range(8)) + [0] * 7 + [8]]
    assert gptq_folder.unpack_integers(words[:, 2:], 8).tolist() == [[0x10, 0x32, 0x54, 0x76, 0, 0, 0, 0x80]]


def test_the_reader_refuses_what_contradicts_itself(tmp_path):
    weight = random_weight(Scheme(4, 32, symmetric=False), 32, 64, 0, 0)
    weight.zero_points[0, 0] = 7
    write(tmp_path, weight, "gptq_v2", checkpoint_format="gptq")
    with pytest.raises(RunError, match=f"A zero point of {NAME} is stored as -1"):
        read(tmp_path)
    write(tmp_path, weight, "gptq_v2", group_size=64)
    with pytest.raises(RunError, match=f"g_idx of {NAME} does not say groups of 64"):
        read(tmp_path)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 8}))
    with pytest.raises(RunError, match="differently"):
        read(tmp_path)


def test_a_symmetric_folder_with_other_zero_points_is_shown_as_such(tmp_path):
    weight = random_weight(Scheme(4, 32, symmetric=False), 32, 64, 0, 1)
    write(tmp_path, weight, "gptq", sym=True)
    assert torch.equal(read(tmp_path).zero_points, weight.zero_points)
