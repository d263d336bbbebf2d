"""Streams a checkpoint's weights into the external-data file beside `model.onnx`, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from onnx import TensorProto

from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.low_rank import LowRank
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight, Scheme
from targets.casting import Caster
from targets.onnx.nodes import ONNX_TYPES
from targets.onnx.parts import stored_rotary_tables
from targets.onnx.plan import LOW_RANK_PARTS, Matrix, Plan

DATA_FILE = "model.onnx.data"
# onnxruntime maps the file into memory: large tensors start on a page, small ones where vector loads are aligned.
PAGE, LINE, LARGE = 4096, 64, 1 << 20
ELEMENTS_PER_CHUNK = 8 << 20  # of one write: bounds what casting and packing need on top of the block

Shape = tuple[int, ...]


class DataFile:
    """The external-data file under construction; `initializers` refers into it."""

    def __init__(self, folder: Path) -> None:
        self.initializers: list[TensorProto] = []
        self._file = (folder / DATA_FILE).open("wb")

    def close(self) -> None:
        self._file.close()

    def write(self, views: Mapping[str, Shape], dtype: torch.dtype, chunks: Iterable[torch.Tensor]) -> None:
        """Append a tensor, given as consecutive pieces of its memory, under each name with the shape it has there."""
        (length,) = {torch.Size(shape).numel() * dtype.itemsize for shape in views.values()}
        self.append(views, ONNX_TYPES[dtype], length, (chunk.to(dtype) for chunk in chunks))

    def append(self, views: Mapping[str, Shape], kind: int, length: int, chunks: Iterable[torch.Tensor]) -> None:
        """Append the bytes of a tensor of the ONNX type `kind`, `length` of them."""
        self._file.seek(-self._file.tell() % (PAGE if length >= LARGE else LINE), 1)
        offset = self._file.tell()
        for chunk in chunks:
            self._file.write(chunk.contiguous().view(torch.uint8).numpy().data)
        assert self._file.tell() == offset + length, views
        self.initializers += [_reference(name, shape, kind, offset, length) for name, shape in views.items()]


def stream(plan: Plan, checkpoint: Checkpoint, caster: Caster | None, data: DataFile, progress: Progress) -> None:
    """Write every weight of the checkpoint, cast by `caster` if there is one, and the rotary tables."""
    names = checkpoint.block_names
    for done, name in enumerate(names, start=1):
        block = checkpoint.block(name)
        if caster is not None:
            _cast(block.weights, caster)
        _write_block(plan, block, data)
        progress("writing", done, len(names))
    for name, table in stored_rotary_tables(checkpoint):
        _write_float(data, name, plan.compute, [table])


def _cast(weights: dict[str, Weight], caster: Caster) -> None:
    for name, weight in weights.items():
        if isinstance(weight, torch.Tensor):
            weights[name] = caster.tensor(name, weight)
        elif isinstance(weight, LowRank):
            weights[name] = LowRank(caster.tensor(name, weight.down), caster.tensor(name, weight.up))


def _write_block(plan: Plan, block: Block, data: DataFile) -> None:
    matrices = _matrices(plan, block)
    packed = {part for matrix in matrices for part in matrix.parts}
    for name, weight in block.weights.items():
        if name.rpartition(".")[0] not in packed:
            _write_float(data, name, plan.compute, [weight])
    for matrix in matrices:
        if matrix.bias:
            _write_float(data, matrix.bias, plan.compute, [block.weights[part + ".bias"] for part in matrix.parts])
        _write_matrix(data, matrix, block.weights)


def _matrices(plan: Plan, block: Block) -> list[Matrix]:
    if block.index is not None:
        return list(plan.block(block.index).values())
    return [matrix for matrix in (plan.table(), plan.head()) if matrix.weight in block.weights][:1]


def _write_matrix(data: DataFile, matrix: Matrix, weights: Mapping[str, Weight]) -> None:
    parts = [weights[part + ".weight"] for part in matrix.parts]
    if matrix.ranks:
        _write_factors(data, matrix, parts)
    if not matrix.has_base:
        return
    if matrix.scheme is None:
        _write_float(data, matrix.weight, matrix.dtype, parts)
    else:
        _write_quantized(data, matrix, matrix.scheme, [part for part in parts if isinstance(part, QuantizedWeight)])


def _write_factors(data: DataFile, matrix: Matrix, parts: list[Weight]) -> None:
    for part, weight in zip(matrix.parts, parts, strict=True):
        factors = weight.branch if isinstance(weight, QuantizedWeight) else weight
        assert isinstance(factors, LowRank)
        for suffix, factor in zip(LOW_RANK_PARTS, (factors.down, factors.up), strict=True):
            _write_float(data, part + suffix, matrix.dtype, [factor])


def _write_float(data: DataFile, name: str, dtype: torch.dtype, parts: list[Weight]) -> None:
    """Write tensors one after the other along their first dimension."""
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    data.write({name: shape}, dtype, (rows for tensor in tensors for rows in _row_chunks(tensor)))


def _write_quantized(data: DataFile, matrix: Matrix, scheme: Scheme, parts: list[QuantizedWeight]) -> None:
    """Write codes uint8 [N, blocks, block * bits / 8], scales float32 [N, blocks], zero points uint8 [N, ...], and
    float32 [K] that multiplies the inputs.

    The codes of an embedding are uint8 [N, K * bits / 8], and a head that is tied to it has the same bytes as codes of
    its own. Layout: MatMulNBits and GatherBlockQuantized in microsoft/onnxruntime, docs/ContribOperators.md.
    """
    rows, block, bits = sum(matrix.rows), matrix.block, scheme.bits
    blocks = -(-matrix.columns // block)
    codes = (chunk for part in parts for chunk in _row_chunks(part.codes))
    packed = (pack(_padded(chunk, blocks * block), bits) for chunk in codes)
    views: dict[str, Shape] = {}
    if matrix.is_multiplied:
        views[matrix.weight + ".codes"] = (rows, blocks, block * bits // 8)
    if matrix.is_looked_up:
        views[matrix.weight + ".rows"] = (rows, matrix.columns * bits // 8)
    data.write(views, torch.uint8, packed)
    scales = (_over_blocks(part.scales, blocks) for part in parts)
    data.write({matrix.weight + ".scales": (rows, blocks)}, torch.float32, scales)
    for part in parts:
        if part.input_factors is not None:
            data.write({matrix.factors: (matrix.columns,)}, torch.float32, [part.input_factors])
    if scheme.symmetric:
        return  # the kernel's own zero point is the middle
    row_bytes = -(-blocks * bits // 8)
    points = (_over_blocks(part.zero_points, blocks) for part in parts if part.zero_points is not None)
    packed_points = (pack(_padded(point, row_bytes * 8 // bits), bits) for point in points)
    data.write({matrix.weight + ".zero_points": (rows, row_bytes)}, torch.uint8, packed_points)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed int8 codes [rows, n] to offset-binary bytes [rows, n * bits / 8], the first element in the low bits."""
    unsigned = codes.view(torch.uint8) + 2 ** (bits - 1)  # wraps around, which makes it offset-binary
    return unsigned if bits == 8 else unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)


def _padded(codes: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - codes.shape[1]
    return torch.nn.functional.pad(codes, (0, missing)) if missing else codes


def _over_blocks(values: torch.Tensor, blocks: int) -> torch.Tensor:
    """Repeat the value of each group [rows, groups] for every block that the group spans."""
    return values.repeat_interleave(blocks // values.shape[1], dim=1)


def _row_chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(tensor.split(max(1, ELEMENTS_PER_CHUNK // tensor[0].numel())))


def _reference(name: str, shape: Shape, kind: int, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", DATA_FILE), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
