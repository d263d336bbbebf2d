"""A model folder as a value: what it holds is known from headers; weights are read one block at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compressor import layout
from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.families import HEAD
from compressor.files import digest_files, whole_folder
from compressor.low_rank import LowRank
from compressor.quantized import QuantizedWeight, Scheme
from compressor.shards import TensorInfo, read_rows, read_tensors
from compressor.stored import read_stored

Weight = torch.Tensor | QuantizedWeight | LowRank

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TABLE_PARTS = ("weight_scale", "weight_zero_point")  # of a quantized embedding, stored again for a head tied to it


@dataclass(frozen=True)
class Block:
    """One unit of streaming: the embedding, a decoder block, or the head (final norm and lm_head).

    `weights` maps full parameter names (`model.layers.0.mlp.up_proj.weight`) to a tensor, a QuantizedWeight or,
    of a linear that was factored, a LowRank.
    With an fp8 key-value cache, its scales are among them: keys are rounded after the rotary embedding, values as
    they are projected. Whoever is handed a block may take weights out of it that are replaced anyway. Every linear
    is [out_features, in_features]. `prefix` is what the names of a decoder block start with.
    """

    name: str
    index: int | None
    weights: dict[str, Weight]
    prefix: str = ""

    def with_weights(self, changed: Mapping[str, Weight]) -> Block:
        return replace(self, weights={**self.weights, **changed})


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face model folder, float or compressed-tensors. Opening it reads JSON and headers, and values
    only where two tensors may be one: a head beside the embedding it is tied to, and a tensor that is stored twice.

    `kv_cache` says whether it carries the scales of an fp8 key-value cache, `notes` what its files left to decide.
    Where these say that it has a head of its own, `config` says so too.
    """

    root: Path
    config: Mapping[str, Any]
    architecture: Architecture
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    schemes: Mapping[str, Scheme] = field(repr=False)
    kv_cache: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, root: Path) -> Checkpoint:
        """Open a model folder.

        Raises:
            InputError: not a model folder, unknown family, a shard missing or truncated, an index that
                names a tensor which its shard does not hold, or parameters missing, unexpected or misshapen.
        """
        root = Path(root)
        found = read_stored(root)
        config, architecture = found.config, found.architecture
        schemes = layout.read_schemes(config, [*architecture.linears(), architecture.embedding])
        if architecture.tied_embeddings and architecture.embedding in schemes:
            schemes.pop(HEAD, None)  # the same table under another name
        kv_cache = layout.reads_kv_cache(config)
        checkpoint = cls(root, config, architecture, found.tensors, schemes, kv_cache, found.notes)
        checkpoint._check_parameters()
        return checkpoint

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, quantized or not: the architecture's and the cache's scales."""
        shapes = self.architecture.tensor_shapes()
        if self.kv_cache:
            layers = range(self.architecture.layers)
            shapes |= {name: (1,) for index in layers for name in self.architecture.cache_scales(index)}
        return shapes

    @cached_property
    def digest(self) -> str:
        """SHA-256 over config.json and every shard, so equal digests mean equal models."""
        names = sorted({info.shard for info in self.tensors.values()} | {"config.json"})
        return digest_files(self.root, names)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the float parameters, as the embedding has it, or the final norm where that is quantized."""
        modules = self.architecture.modules
        holder = modules.norm if modules.embedding in self.schemes else modules.embedding
        return self.tensors[f"{holder}.weight"].dtype

    @property
    def companions(self) -> dict[str, Path]:
        """The files beside the weights, by name: tokenizer, generation and licence."""
        from compressor.writer import companions_of

        return companions_of(self.root)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """8 x bytes / parameters of `all` of the model, of its `decoder layers` and of `embedding and head`."""
        shapes, prefix = self.architecture.tensor_shapes(), f"{self.architecture.modules.blocks}."
        sizes = {name: info.nbytes for name, info in self.tensors.items()}
        chosen: dict[str, Callable[[str], bool]] = {
            "all": lambda name: True,
            "decoder layers": lambda name: name.startswith(prefix),
            "embedding and head": lambda name: not name.startswith(prefix),
        }
        return {
            part: 8 * sum(size for name, size in sizes.items() if holds(name))
            / sum(math.prod(shape) for name, shape in shapes.items() if holds(name))
            for part, holds in chosen.items()
        }  # fmt: skip

    @property
    def block_names(self) -> list[str]:
        return self.architecture.block_names

    def blocks(self) -> Iterator[Block]:
        """Every block in forward order; hold on to one at a time."""
        return (self.block(name) for name in self.block_names)

    def block(self, name: str) -> Block:
        """Read one block into memory.

        Raises:
            InputError: a tensor holds NaN or Inf, or its shard cannot be read.
        """
        index = int(name.removeprefix("layers.")) if name.startswith("layers.") else None
        prefix = "" if index is None else self.architecture.modules.block(index)
        return Block(name, index, self.read(self.parameters_of(name)), prefix)

    def parameters_of(self, block: str) -> list[str]:
        """Names of a block's parameters."""
        prefixes = self.architecture.modules.prefixes(block)
        return [name for name in self.parameters if name.startswith(prefixes)]

    def read(self, parameters: list[str]) -> dict[str, Weight]:
        """Read parameters by full name; quantized ones come as `QuantizedWeight`, factored ones as `LowRank`."""
        stored = [part for parameter in parameters for part in self._stored_names(parameter)]
        raw = read_tensors(self.root, self.tensors, stored)
        return {parameter: self._assemble(parameter, raw) for parameter in parameters}

    def rows(self, parameter: str, most: int) -> Iterator[torch.Tensor]:
        """Read a float parameter as it is stored, at most so many rows at a time."""
        return read_rows(self.root, self.tensors[parameter], most)

    def scales(self, layer: str) -> torch.Tensor:
        """The scales of a quantized layer alone, float32, in the shape that they are stored in; not of NF4."""
        return self._part(layer, layout.SCALE)

    def input_factors(self, layer: str) -> torch.Tensor:
        """What the inputs of a layer are multiplied by, alone: float32 [in_features]."""
        return self._part(layer, "input_factors")

    def _part(self, layer: str, suffix: str) -> torch.Tensor:
        name = f"{layer}.{suffix}"
        return read_tensors(self.root, self.tensors, [name])[name].float()

    def rewrite(
        self,
        out: Path,
        edit: Callable[[Block], Block],
        provenance: Mapping[str, Any],
        dtype: torch.dtype | None = None,
    ) -> Checkpoint:
        """Stream every block through `edit` into the new folder `out`, which appears only when it is whole.

        Args:
            provenance: written to `llmc-step.json`: how this folder came to be.
            dtype: what every float parameter is cast to; None leaves each as `edit` returned it. A pass that
                transforms weights says float32, so that they meet a 16-bit grid only where they are rounded for good.
        """
        from compressor.writer import CheckpointWriter, copy_companions

        with whole_folder(out) as folder:
            writer = CheckpointWriter(folder, self.architecture, dtype or self.dtype, cast=dtype is not None)
            for block in self.blocks():
                writer.add(edit(block).weights)
            copy_companions(self.root, folder)
            writer.finish(self.config, provenance)
        return Checkpoint.open(out)

    def _stored_names(self, parameter: str) -> list[str]:
        layer = parameter.removesuffix(".weight")
        if layer not in self.schemes or layer == parameter:
            return [parameter]
        return [f"{layer}.{suffix}" for suffix in layout.suffixes(self.schemes[layer])]

    def _assemble(self, parameter: str, raw: Mapping[str, torch.Tensor]) -> Weight:
        names = self._stored_names(parameter)
        if names == [parameter]:
            return raw[parameter].T.contiguous() if self.architecture.is_transposed(parameter) else raw[parameter]
        layer = parameter.removesuffix(".weight")
        return layout.decode({name.removeprefix(f"{layer}."): raw[name] for name in names}, self.schemes[layer])

    def _stored_shapes(self) -> dict[str, tuple[int, ...] | None]:
        """Name and shape of every tensor that the shards must hold; None where the shape depends on the content."""
        shapes: dict[str, tuple[int, ...] | None] = {}
        for name, shape in self.parameters.items():
            layer = name.removesuffix(".weight")
            if layer != name and layer in self.schemes:
                rows, columns = shape
                stored = layout.stored_shapes(self.schemes[layer], (rows, columns))
                shapes |= {f"{layer}.{suffix}": part for suffix, part in stored.items()}
            else:
                shapes[name] = shape[::-1] if self.architecture.is_transposed(name) else shape
        return shapes

    def _check_parameters(self) -> None:
        kind, expected = self.architecture.model_type, self._stored_shapes()
        for name, wanted in expected.items():
            if name not in self.tensors:
                raise InputError(f"The checkpoint has no tensor {name}, which a {kind} model needs.")
            found = self.tensors[name].shape
            if wanted is not None and found != wanted and not (wanted == (1,) and found == ()):
                raise InputError(f"Tensor {name} has shape {list(found)}; config.json says {list(wanted)}.")
            if name in self.parameters or name.endswith(layout.LOW_RANK_PARTS):
                self._check_dtype(name)
        unexpected = [name for name in self.tensors if name not in expected and not self._is_copy(name)]
        if unexpected:
            stored = self.tensors[unexpected[0]].name
            raise InputError(f"Tensor {stored} has no place in a {kind} model; nothing is dropped silently.")

    def _is_copy(self, name: str) -> bool:
        """Whether a tensor repeats scales of a quantized embedding for the head that is tied to it."""
        tied = self.architecture.tied_embeddings and self.architecture.embedding in self.schemes
        return tied and name in {f"{HEAD}.{part}" for part in ("weight", *TABLE_PARTS)}

    def _check_dtype(self, name: str) -> None:
        """Codes that are stored as they are have the dtype of their scheme; everything else is a float parameter."""
        dtype, scheme = self.tensors[name].dtype, self.schemes.get(name.removesuffix(".weight"))
        fitting = FLOATS if scheme is None else (layout.plain_dtype(scheme),)
        if dtype not in fitting:
            says = "no scheme for it" if scheme is None else str(scheme)
            raise InputError(f"Tensor {name} has the unsupported dtype {dtype}; config.json says {says}.")
