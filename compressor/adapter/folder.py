"""A PEFT adapter as a value: `adapter_config.json` and the headers of its tensors, which are read by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compressor.adapter.config import CONFIG_FILE, read_adapter_config
from compressor.adapter.keys import UNUSED, parse_key
from compressor.errors import InputError
from compressor.files import digest_files
from compressor.inside import check_links
from compressor.patterns import matches
from compressor.shards import TensorInfo, read_header, read_tensors

TENSORS_FILE, PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"
HUB_FILES = [CONFIG_FILE, TENSORS_FILE, "README.md", "tokenizer*", "special_tokens_map.json",
             "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"]  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """A trained adapter.

    Attributes:
        source: what its user calls it.
        tensors: what its file holds, by key.
        pickled: the tensors themselves where the file is a pickle; they are memory-mapped.
    """

    source: str
    root: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    pickled: Mapping[str, torch.Tensor] | None = field(repr=False, default=None)

    @property
    def folder(self) -> Path:
        """What its user named: the folder that it lies in, or the one above it."""
        return self.root.parent if Path(self.source).expanduser() == self.root.parent else self.root

    @cached_property
    def digest(self) -> str:
        """SHA-256 over its configuration and its tensors."""
        return digest_files(self.root, [CONFIG_FILE, TENSORS_FILE if self.pickled is None else PICKLE_FILE])

    @cached_property
    def modules(self) -> dict[str, dict[str, str]]:
        """Keys of the tensors, by the module they change and by what they are there (see `compressor.adapter.keys`).

        Raises:
            InputError: a tensor is nothing that is known, or there are several adapters in one file.
        """
        found: dict[str, dict[str, str]] = {}
        names = set()
        for key in self.tensors:
            parsed = parse_key(key)
            if parsed is None:
                raise InputError(f"The adapter {self.source} holds {key}, which is no part of a LoRA, LoHa or LoKr.")
            if 0 in self.tensors[key].shape:
                raise InputError(
                    f"The adapter {self.source} was saved without its weights: {key} is empty.",
                    "DeepSpeed ZeRO-3 leaves that where parameters are not gathered on saving: gather them "
                    "(stage3_gather_16bit_weights_on_model_save), or make the file with zero_to_fp32.py.",
                )
            names |= {parsed.name} - {None}
            if parsed.part == UNUSED:
                continue
            parts = found.setdefault(parsed.module, {})
            # A module that was trained whole may stand there twice, and peft reads the shorter name.
            if len(key) < len(parts.get(parsed.part, key + " ")):
                parts[parsed.part] = key
        if len(names) > 1:
            raise InputError(
                f"{self.root} holds several adapters in one file: {', '.join(sorted(map(str, names)))}.",
                "Save each in a folder of its own with `save_pretrained(selected_adapters=[...])`.",
            )
        if not found:
            raise InputError(f"The adapter {self.source} is empty: its file holds no tensor that changes a model.")
        return found

    @property
    def kind(self) -> str:
        """LoRA, rsLoRA, DoRA, LoHa or LoKr."""
        if self.config["peft_type"] != "LORA":
            return {"LOHA": "LoHa", "LOKR": "LoKr"}[self.config["peft_type"]]
        if self.config.get("use_dora"):
            return "DoRA"
        return "rsLoRA" if self.config.get("use_rslora") else "LoRA"

    @property
    def base(self) -> str | None:
        """The model it says it was trained on: a hub id, or a folder on somebody's machine."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def ranks(self) -> list[int]:
        """Every rank that its modules have, in order."""
        return sorted({self.rank(module) for module, parts in self.modules.items() if not parts.keys() <= WHOLE})

    @property
    def used(self) -> list[str]:
        """Keys of the tensors that a merge reads."""
        return [key for parts in self.modules.values() for key in parts.values()]

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(math.prod(self.tensors[key].shape) for key in self.used)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def rank(self, module: str) -> int:
        """The rank of a module by the configuration, patterns applied as peft applies them."""
        return self._by_pattern("rank_pattern", module, self.config.get("r", 8))

    def scaling(self, module: str) -> float:
        """What the low-rank product of a module is multiplied by."""
        alpha = self.config.get("lora_alpha" if self.config["peft_type"] == "LORA" else "alpha", 8)
        alpha, rank = self._by_pattern("alpha_pattern", module, alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def token_indices(self, module: str) -> list[int]:
        """Rows of a table that were trained alone. A head that is tied to the embedding has the embedding's."""
        indices = self.config.get("trainable_token_indices") or []
        if not isinstance(indices, Mapping):
            return list(indices)
        named = [rows for name, rows in indices.items() if f".{module}".endswith(f".{name}")]
        return list(next(iter([*named, *indices.values()]), []))

    def _by_pattern(self, name: str, module: str, default: Any) -> Any:
        """The value of the first pattern that matches the end of a module's name."""
        for pattern, value in (self.config.get(name) or {}).items():
            if matches(rf"(.*\.)?({pattern})$", module, f"{self.root / CONFIG_FILE}, {name},"):
                return value
        return default

    def read(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors by key, in float32: peft computes with them in that, however they are stored.

        Raises:
            InputError: one holds NaN or Inf.
        """
        keys = list(keys)
        if self.pickled is None:
            read = read_tensors(self.root, self.tensors, keys, factors=True)
            return {key: tensor.float() for key, tensor in read.items()}
        for key in keys:
            if not bool(torch.isfinite(self.pickled[key]).all()):
                raise InputError(f"{self.root / PICKLE_FILE}: tensor {key} holds NaN or Inf values.")
        return {key: self.pickled[key].float() for key in keys}

    def check_finite(self) -> None:
        """Read everything that a merge reads once.

        Raises:
            InputError: a tensor holds NaN or Inf.
        """
        for key in self.used:
            self.read([key])


WHOLE = {"weight", "bias", "trainable_tokens_delta"}  # parts that have no rank


def holds_adapter(root: Path) -> bool:
    """Whether a folder holds an adapter, beside a model or alone."""
    return (root / CONFIG_FILE).is_file()


def is_adapter(root: Path) -> bool:
    """Whether a folder holds adapters and no model."""
    inside = holds_adapter(root) or any(root.glob(f"*/{CONFIG_FILE}"))
    return inside and not (root / "config.json").is_file()


def pickle_of(source: str) -> Path | None:
    """The pickle that holds an adapter's weights, where there is no other file with them."""
    root = _inside(Path(source).expanduser())
    pickled = root / PICKLE_FILE
    return pickled if pickled.is_file() and not (root / TENSORS_FILE).is_file() else None


def open_adapter(source: str) -> Adapter:
    """Open a folder, or a hub id `org/name` where no such folder exists. Reads JSON and headers only.

    A pickle is opened without being asked about: whoever runs passes asks `Pass.pickles` first.

    Raises:
        InputError: it is no adapter, or one of a kind that is not merged here.
    """
    root = _folder(source)
    check_links(root)
    config = read_adapter_config(root, source)
    pickled = pickle_of(str(root))
    if pickled is None:
        if not (root / TENSORS_FILE).is_file():
            raise InputError(f"The adapter {source} has no {TENSORS_FILE}.")
        infos = read_header(root, TENSORS_FILE)
        return Adapter(source, root, config, {info.name: info for info in infos})
    from compressor.source import load_pickle

    state = load_pickle(pickled)
    tensors = {key: TensorInfo(key, value.dtype, tuple(value.shape), PICKLE_FILE) for key, value in state.items()}
    return Adapter(source, root, config, tensors, state)


def _inside(root: Path, remedy: str = "Give the folder of one of them; --adapter can be repeated.") -> Path:
    """The folder itself, or the only one in it with an adapter: peft saves each of several in one of its own.

    Raises:
        InputError: there are several.
    """
    inner = [] if holds_adapter(root) else sorted(path.parent for path in root.glob(f"*/{CONFIG_FILE}"))
    if len(inner) > 1:
        raise InputError(
            f"{root} holds {len(inner)} adapters: {', '.join(path.name for path in inner)}.",
            remedy,
        )
    return inner[0] if inner else root


def _folder(source: str) -> Path:
    from compressor.model_path import HUB_ID

    path = Path(source).expanduser()
    if path.is_dir():
        return _inside(path)
    before, _, weight = source.rpartition(":")
    if Path(before).is_dir() and before:
        raise InputError(f"The weight {weight!r} of the adapter {before} is no number.", f"{before}:0.5, for example.")
    if path.exists() or not HUB_ID.fullmatch(source):
        raise InputError(f"{source} is neither the folder of an adapter nor a hub id (org/name).")
    return _of_hub(source)


def _of_hub(source: str) -> Path:
    """The local copy of an adapter on the hub: in the repository's root, or in the only folder that holds one."""
    from compressor.source import snapshot
    from compressor.writer import CHAT_TEMPLATES

    root = snapshot(source, HUB_FILES, [CHAT_TEMPLATES, f"*/{CONFIG_FILE}"])
    one = f"`hf download {source.partition('@')[0]} --include 'FOLDER/*' --local-dir DIR`"
    found = _inside(root, f"Download the one that is meant, {one}, and give its folder.")
    if found != root:
        snapshot(source, HUB_FILES, [f"{found.name}/{pattern}" for pattern in HUB_FILES])
    return found
