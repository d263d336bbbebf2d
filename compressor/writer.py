"""Streams a checkpoint out in the compressed-tensors layout, holding one block at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compressor import layout
from compressor.architecture import Architecture
from compressor.checkpoint import TABLE_PARTS, Checkpoint, Weight
from compressor.end_tokens import GENERATION_CONFIG
from compressor.errors import InputError
from compressor.families import CACHE_SCALES, HEAD
from compressor.files import digest_files, write_json
from compressor.generation_config import usable_settings
from compressor.inside import check_links
from compressor.quantized import Scheme, scheme_of
from compressor.shards import COMMON, OWN, ShardNames, TensorInfo, as_bytes, header

STEP_FILE = "llmc-step.json"
BESIDE = "beside"  # and that of the files beside it
CONTENT = "content"  # key in it: the digest of the checkpoint, which those of earlier versions do not have
# Blocks are gathered into a shard up to this size; a larger block is a shard of its own, so that
# writing needs no more memory than reading did.
SHARD_BYTES = 16 << 20
# What says what a model is, and what may be done with it.
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md")
CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
# Files of a model folder that are carried over from step to step.
COMPANION_PATTERNS = (GENERATION_CONFIG, "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt",
                      "added_tokens.json", "chat_template*", "*.jinja", CHAT_TEMPLATES,
                      "*.model", *LEGAL)  # fmt: skip


class ShardWriter:
    """Writes named tensors into an empty `folder` as safetensors shards with an index, as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[dict[str, int]] = []
        self._pending: dict[str, torch.Tensor] = {}

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the tensors of one block; their memory is free again once their shard is flushed."""
        if self._pending and _nbytes(self._pending) + _nbytes(tensors) > SHARD_BYTES:
            self._flush()
        self._pending |= tensors
        if _nbytes(self._pending) >= SHARD_BYTES:
            self._flush()

    def stream(self, tensors: Sequence[TensorInfo], parts: Iterator[torch.Tensor]) -> None:
        """Write a shard of tensors that come in parts, some rows at a time in this order; only one part is held."""
        path, left = self._next_path(), sum(one.nbytes for one in tensors)
        with path.open("wb") as file:
            file.write(header(tensors))
            while left:
                part = next(parts)
                file.write(as_bytes(part))
                left -= part.nbytes
        self._shards.append({one.name: one.nbytes for one in tensors})

    def finish(self, names: ShardNames = COMMON) -> None:
        """Write what is pending and the index; a single shard has the plain name and no index."""
        if self._pending:
            self._flush()
        count = len(self._shards)
        if count == 1:
            (self._folder / "shard-0").rename(self._folder / names.single)
            return
        weight_map: dict[str, str] = {}
        for number, sizes in enumerate(self._shards):
            name = names.numbered(number + 1, count)
            (self._folder / f"shard-{number}").rename(self._folder / name)
            weight_map |= dict.fromkeys(sizes, name)
        total = sum(sum(sizes.values()) for sizes in self._shards)
        write_json(self._folder / names.index, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def _next_path(self) -> Path:
        return self._folder / f"shard-{len(self._shards)}"

    def _flush(self) -> None:
        path = self._next_path()
        path.touch()
        mode = path.stat().st_mode
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors leaves files that only their owner can read
        self._shards.append({name: tensor.nbytes for name, tensor in self._pending.items()})
        self._pending = {}


class CheckpointWriter:
    """Writes the weights of one checkpoint into an empty `folder`, shard by shard.

    Args:
        dtype: float dtype of the model, in which the scales of quantized weights are stored.
        cast: store every float parameter in `dtype` too, and say so in config.json.
    """

    def __init__(self, folder: Path, architecture: Architecture, dtype: torch.dtype, cast: bool = False) -> None:
        self._folder, self._architecture, self._dtype, self._cast = folder, architecture, dtype, cast
        self._shards = ShardWriter(folder)
        self._schemes: dict[str, Scheme] = {}
        self._has_head = self._has_cache_scales = False
        self._table: dict[str, torch.Tensor] = {}  # scales and zero points of a quantized embedding

    def add(self, weights: Mapping[str, Weight]) -> None:
        """Take the weights of the next block; their memory is free again once their shard is flushed."""
        tensors: dict[str, torch.Tensor] = {}
        for name, weight in weights.items():
            tensors |= self._stored(name, weight)
            self._has_head |= name == f"{HEAD}.weight"
            self._has_cache_scales |= name.endswith(CACHE_SCALES)
        self._shards.add(tensors)

    def stream(self, tensors: Sequence[TensorInfo], parts: Iterator[torch.Tensor]) -> None:
        """Write a shard of float parameters that come as they are stored, some rows at a time in this order."""
        self._has_head |= any(one.name == f"{HEAD}.weight" for one in tensors)
        self._shards.stream(tensors, parts)

    def finish(
        self,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any] | None,
        companions: Callable[[Path], None] | None = None,
    ) -> None:
        """Write what is pending, the index, config.json with `quantization_config`, and a step's `llmc-step.json`.

        Args:
            companions: writes the files beside them, where these do not lie in the folder already. It finds
                config.json there, by which transformers chooses the class of a tokenizer. A step's digest is of all.
        """
        if self._architecture.embedding in self._schemes and not self._has_head:
            self._share_with_head()
        extended = any(scheme.extensions for scheme in self._schemes.values())
        self._shards.finish(OWN if extended else COMMON)
        write_json(self._folder / "config.json", self._config(config))
        if companions is not None:
            companions(self._folder)
        if provenance is not None:
            names = [path.name for path in (*self._folder.glob("*.safetensors"), self._folder / "config.json")]
            digests = {CONTENT: digest_files(self._folder, names), BESIDE: _digest_beside(self._folder)}
            write_json(self._folder / STEP_FILE, {**provenance, **digests})

    def _stored(self, name: str, weight: Weight) -> dict[str, torch.Tensor]:
        if isinstance(weight, torch.Tensor):
            stored = weight.T if self._architecture.is_transposed(name) else weight
            return {name: (stored.to(self._dtype) if self._cast else stored).contiguous()}
        layer = name.removesuffix(".weight")
        self._schemes[layer] = scheme_of(weight)
        tensors = {f"{layer}.{suffix}": tensor for suffix, tensor in layout.encode(weight, self._dtype).items()}
        if layer == self._architecture.embedding:
            self._table = {
                name.replace(layer, HEAD): tensor for name, tensor in tensors.items() if name.endswith(TABLE_PARTS)
            }
        return tensors

    def _share_with_head(self) -> None:
        """A tied head reads the integers of the embedding; transformers wants what else it has, and a scheme, twice."""
        self._schemes[HEAD] = self._schemes[self._architecture.embedding]
        self._shards.add({name: tensor.clone() for name, tensor in self._table.items()})

    def _config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        written = {key: value for key, value in config.items() if key != "quantization_config"}
        # compressed-tensors gives NVFP4 weights in bfloat16 only, so that transformers can run the model in no other.
        has_nvfp4 = any(scheme.kind == "nvfp4" for scheme in self._schemes.values())
        if self._cast or has_nvfp4:
            written.pop("torch_dtype", None)  # the spelling of transformers 4
            written["dtype"] = "bfloat16" if has_nvfp4 else str(self._dtype).removeprefix("torch.")
        if self._has_head:
            written["tie_word_embeddings"] = False
        if self._schemes or self._has_cache_scales:
            written["quantization_config"] = layout.quantization_config(
                self._schemes, self._architecture.linears(), self._has_cache_scales, self._dtype
            )
        return written


def check_content(checkpoint: Checkpoint, known: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint that an earlier run left, once its bytes are seen to be those that were written.

    Args:
        known: what the step file says.

    Raises:
        InputError: they are not.
    """
    found = {CONTENT: checkpoint.digest, BESIDE: _digest_beside(checkpoint.root)}
    if any(known.get(key) not in (None, digest) for key, digest in found.items()):
        raise InputError(
            f"{checkpoint.root} is damaged: its bytes are not those that were written.", "Remove it to make it again."
        )
    return checkpoint


def _digest_beside(folder: Path) -> str:
    return digest_files(folder, sorted(companions_of(folder)))


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, generation and licence files of a model folder (see `copy_files`).

    Raises:
        InputError: one of them lies elsewhere.
    """
    copy_files(companions_of(source), out)


def companions_of(source: Path) -> dict[str, Path]:
    """Tokenizer, generation and licence files of a model folder, by name.

    Raises:
        InputError: one of them lies elsewhere.
    """
    check_links(source)
    found = (path for pattern in COMPANION_PATTERNS for path in sorted(source.glob(pattern)) if path.is_file())
    return {path.relative_to(source).as_posix(): path for path in found}


def copy_legal(checkpoint: Checkpoint, out: Path) -> None:
    """Copy what says what a model is, and what may be done with it, byte for byte.

    Raises:
        InputError: a file of it lies elsewhere.
    """
    found = checkpoint.companions.items()
    copy_files({name: path for name, path in found if any(fnmatch(name, pattern) for pattern in LEGAL)}, out)


def copy_files(files: Mapping[str, Path], out: Path) -> None:
    """Copy files into a folder under the names they have here.

    Byte for byte, but for settings in generation_config.json that transformers refuses: these are left out.
    """
    for name, path in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        settings, refused = usable_settings(path.parent) if name == GENERATION_CONFIG else ({}, [])
        if refused:
            write_json(out / name, settings)
        else:
            shutil.copyfile(path, out / name)


def _nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
