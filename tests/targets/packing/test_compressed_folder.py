"""The compressed-tensors reader, held against our layout on one side and the library's decompressor on the other."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from compressor import layout
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing import compressed_folder

NAME = "model.layers.0.mlp.up_proj"


def random_weight(scheme: Scheme, rows: int, columns: int, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if scheme.group_size is None else columns // scheme.group_size
    low, high = scheme.lowest, scheme.highest + 1
    codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
    zero_points = torch.randint(low, high, (rows, groups), generator=generator, dtype=torch.int8)
    scales = torch.rand((rows, groups), generator=generator).bfloat16().float() + 2**-8
    return QuantizedWeight(codes, scales.bfloat16().float(), None if scheme.symmetric else zero_points, scheme)


def write(folder: Path, weight: QuantizedWeight) -> None:
    tensors = layout.encode(weight, torch.bfloat16)
    save_file({f"{NAME}.{part}": tensor for part, tensor in tensors.items()}, folder / "model.safetensors")
    config = {"quantization_config": layout.quantization_config({NAME: weight.scheme}, [NAME, "lm_head"])}
    (folder / "config.json").write_text(json.dumps(config))


schemes = st.builds(Scheme, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128, None]), st.booleans())


@settings(max_examples=25, deadline=None)
@given(scheme=schemes, rows=st.integers(1, 40), groups=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_reads_back_integers_scales_and_zero_points(scheme, rows, groups, seed):
    weight = random_weight(scheme, rows, groups * (scheme.group_size or 40), seed)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), weight)
        found = dict(compressed_folder.read_folder(Path(folder)))
    assert list(found) == [f"{NAME}.weight"]
    assert weight.same_bits(found[f"{NAME}.weight"])
    assert found[f"{NAME}.weight"].scheme == scheme


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_library_gives_the_values_that_dequantize_defines(bits, group_size, symmetric):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    weight = random_weight(Scheme(bits, group_size, symmetric), 24, 256, seed=0)
    config = QuantizationConfig.model_validate(layout.quantization_config({NAME: weight.scheme}, [NAME]))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = layout.encode(weight, torch.float32)
    assert torch.equal(compressor.decompress(stored, config.config_groups["group_0"])["weight"], weight.dequantize())


def test_a_packed_layer_without_a_scheme_is_an_error(tmp_path):
    write(tmp_path, random_weight(Scheme(4, 32), 8, 64, seed=0))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["ignore"] = [NAME]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="gives no scheme"):
        list(compressed_folder.read_folder(tmp_path))
