"""Streams a checkpoint's weights into the external-data file beside `model.onnx`, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from onnx import TensorProto

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight
from targets.casting import Caster
from targets.onnx.parts import stored_rotary_tables
from targets.onnx.qdq.graph import CODES, FACTORS, INPUT_SCALE, SCALES, ZEROS, Plan, has_zeros
from targets.onnx.qdq.limits import block_size
from targets.onnx.weights import DataFile

ELEMENTS_PER_CHUNK = 8 << 20  # of one write: bounds what casting and packing need on top of the block


def stream(plan: Plan, checkpoint: Checkpoint, caster: Caster, data: DataFile, progress: Progress) -> None:
    """Write every weight of the checkpoint, float ones cast by `caster`, and the rotary tables."""
    names = checkpoint.block_names
    for done, block_name in enumerate(names, start=1):
        for name, weight in checkpoint.block(block_name).weights.items():
            if isinstance(weight, QuantizedWeight):
                _write_quantized(plan, name, weight, data)
            elif isinstance(weight, torch.Tensor):
                _write_float(data, name, caster.tensor(name, weight))
        progress("writing", done, len(names))
    for name, table in stored_rotary_tables(checkpoint):
        _write_float(data, name, table.to(plan.compute))


def _write_float(data: DataFile, name: str, tensor: torch.Tensor) -> None:
    data.write({name: tuple(tensor.shape)}, tensor.dtype, tensor.flatten().split(ELEMENTS_PER_CHUNK))


def _write_quantized(plan: Plan, name: str, weight: QuantizedWeight, data: DataFile) -> None:
    """Write codes int4 or int8 [K, N], scales [K / block, N] or [N], zero points like these, an input scale [], factors
    of the inputs [K].
    """
    rows, columns = weight.codes.shape
    _check_scales(plan, name, weight)
    kind = TensorProto.INT4 if weight.scheme.bits == 4 else TensorProto.INT8
    data.append({name + CODES: (columns, rows)}, kind, rows * columns * weight.scheme.bits // 8, _packed(weight))
    block = block_size(weight.scheme, columns)
    if block is None:
        scales = weight.scales.flatten()
    else:
        scales = weight.scales.T.repeat_interleave(columns // block // weight.scales.shape[1], dim=0)
    _write_float(data, name + SCALES, scales.to(plan.compute))
    if has_zeros(plan.schemes, weight.scheme):
        zeros = torch.zeros(scales.shape, dtype=torch.int8)
        data.append({name + ZEROS: tuple(zeros.shape)}, TensorProto.INT8, zeros.nbytes, [zeros])
    if weight.input_scale is not None:
        _write_float(data, name + INPUT_SCALE, weight.input_scale.to(plan.compute))
    if weight.input_factors is not None:
        _write_float(data, name + FACTORS, weight.input_factors.to(plan.compute))


def _check_scales(plan: Plan, name: str, weight: QuantizedWeight) -> None:
    for values in (weight.scales, weight.input_scale, weight.input_factors):
        if values is not None and not torch.equal(values.to(plan.compute).float(), values):
            raise InputError(
                f"The scales of {name} are not exact in float16, in which they are multiplied.",
                "dtype=float32 works, and so does quantizing the float checkpoint with llmc, whose scales fit.",
            )


def _packed(weight: QuantizedWeight) -> Iterator[torch.Tensor]:
    """The codes of the transposed weight in pieces; two of four bits a byte, the first in the low bits."""
    for codes in weight.codes.T.contiguous().flatten().split(ELEMENTS_PER_CHUNK):
        yield codes if weight.scheme.bits == 8 else (codes[0::2] & 15) | (codes[1::2] << 4)
