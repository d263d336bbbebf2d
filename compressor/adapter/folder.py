"""A PEFT adapter as a value: `adapter_config.json` and the headers of its tensors, which are read by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compressor.adapter.keys import UNUSED, parse_key
from compressor.errors import InputError
from compressor.files import digest_files
from compressor.inside import check_links
from compressor.patterns import matches
from compressor.shards import TensorInfo, read_header, read_tensors

CONFIG_FILE, TENSORS_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
HUB_FILES = [CONFIG_FILE, TENSORS_FILE, "README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
TYPES = ("LORA", "LOHA", "LOKR")
# Options of LoRA under which what is computed is not W + B A, or stands in other tensors.
OTHER_LORAS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Ways to start training that take a part out of the base's weights, which the adapter then holds.
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


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
            return {key: tensor.float() for key, tensor in read_tensors(self.root, self.tensors, keys).items()}
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
    """Whether a folder holds an adapter and no model."""
    return holds_adapter(root) and not (root / "config.json").is_file()


def pickle_of(source: str) -> Path | None:
    """The pickle that holds an adapter's weights, where there is no other file with them."""
    root = Path(source).expanduser()
    pickled = root / PICKLE_FILE
    return pickled if pickled.is_file() and not (root / TENSORS_FILE).is_file() else None


def open_adapter(source: str) -> Adapter:
    """Open a folder, or a hub id `org/name` where no such folder exists. Reads JSON and headers only.

    A pickle is opened without being asked about: whoever runs passes asks `Pass.pickles` first.

    Raises:
        InputError: it is no adapter, or one of a kind that is not merged here.
    """
    root = _folder(source)
    config = _read_config(root)
    _check_kind(source, config)
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


def _folder(source: str) -> Path:
    from compressor.source import HUB_ID, snapshot

    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(source):
        raise InputError(f"{source} is neither the folder of an adapter nor a hub id (org/name).")
    return snapshot(source, HUB_FILES)


def _read_config(root: Path) -> dict[str, Any]:
    path = root / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{root} is not a PEFT adapter: it has no {CONFIG_FILE}.")
    check_links(root)
    try:
        config = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON.") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{path} names no peft_type.")
    return config


def _check_kind(source: str, config: Mapping[str, Any]) -> None:
    if config["peft_type"] not in TYPES:
        raise InputError(
            f"The adapter {source} is a {config['peft_type']}; LoRA, DoRA, LoHa and LoKr are merged.",
            "Merge it with peft's merge_and_unload, where that method has one, and compress the outcome.",
        )
    other = next((name for name in OTHER_LORAS if config.get(name)), None)
    if other is not None:
        raise InputError(
            f"The adapter {source} was trained with {other}, which is not merged here.",
            "Merge it with peft's merge_and_unload, and compress the outcome.",
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGES_BASE):
        raise InputError(
            f"The adapter {source} starts from init_lora_weights={start!r}, which changed its base's weights too.",
            "Save it as an ordinary LoRA (peft's `path_initial_model_for_weight_conversion`), or merge it with peft.",
        )
