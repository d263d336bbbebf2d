"""Base of targets whose artifact is a Hugging Face folder in 16 bits, its linears stored as one runtime wants them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.families import CACHE_SCALES
from compressor.files import write_json
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight
from compressor.target import Target
from compressor.writer import ShardWriter, copy_companions
from targets.casting import (
    DTYPE_HELP,
    Caster,
    ServedDtype,
    cast,
    cast_dtype,
    float_problems,
    other_dtype,
    scale_problems,
    served_config,
)


@dataclass(frozen=True)
class ServedFolder(Target):
    """Streams the checkpoint into shards; subclasses store one linear and describe the quantization."""

    preset: ClassVar[tuple[str, ...]] = ("gptq:bits=4",)
    scales_are_served_in_dtype: ClassVar[bool] = True  # and not in float32, so that they must be exact in it

    dtype: ServedDtype = option("auto", DTYPE_HELP)

    @abstractmethod
    def stored_linear(self, layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The tensors, by full name, that hold a quantized linear in the runtime's layout."""

    @abstractmethod
    def describe(self, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
        """The `quantization_config` of config.json; files of the runtime's own are written into `out`."""

    def check_block(self, block: Block, architecture: Architecture) -> None:
        """See that the runtime can keep all numbers of a block as they are.

        Raises:
            InputError: it cannot.
        """

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        found = list(float_problems(self.dtype, checkpoint, floats))
        if floats and not found and self.scales_are_served_in_dtype:
            dtype = cast_dtype(self.dtype, checkpoint.tensors[floats[0]].dtype)
            found += scale_problems(checkpoint, dtype, other_dtype(dtype))
        return found

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        caster, shards = Caster(self.dtype, checkpoint), ShardWriter(out)
        total = len(checkpoint.block_names)
        for done, block in enumerate(checkpoint.blocks(), start=1):
            self.check_block(block, checkpoint.architecture)
            shards.add(dict(self.stored_block(block, checkpoint.architecture, caster)))
            progress("writing", done, total)
        shards.finish()
        quantization = {"quantization_config": self.describe(checkpoint, out)}
        write_json(out / "config.json", served_config(checkpoint, caster.dtype) | quantization)
        copy_companions(checkpoint.root, out)
        return caster.notes

    def expected(self, name: str, weight: Weight, architecture: Architecture) -> Weight:
        return weight if name.endswith(CACHE_SCALES) else cast(self.dtype, weight)

    def stored_block(
        self, block: Block, architecture: Architecture, caster: Caster
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors, by full name, that hold a block."""
        for name, weight in block.weights.items():
            if isinstance(weight, QuantizedWeight):
                layer = name.removesuffix(".weight")
                if self.scales_are_served_in_dtype and weight.rounded_scales is None:
                    caster.check_scales(layer, weight)
                yield from self.stored_linear(layer, weight, caster.dtype).items()
                continue
            assert isinstance(weight, torch.Tensor)  # factors are refused
            if name.endswith(CACHE_SCALES):
                yield name, weight  # runtimes read them in float32
            else:
                stored = weight.T.contiguous() if architecture.is_transposed(name) else weight
                yield name, caster.tensor(name, stored)
