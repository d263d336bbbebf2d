"""Where a model comes from: a folder (float, quantized, or pickled), a GGUF file, or the Hugging Face hub."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from compressor.adapter import is_adapter
from compressor.architecture import Architecture, read_config, resolve
from compressor.checkpoint import Checkpoint
from compressor.convert import Check, Outline, converted_before, unchecked, write_converted
from compressor.dequantize import dequantize
from compressor.errors import InputError, RunError
from compressor.families import FAMILIES, full_name
from compressor.files import digest_files, is_disk_full, refuse_pointer
from compressor.generation_config import refused_note
from compressor.inside import check_name, commit_of, inside, told_commit
from compressor.json_file import read_object
from compressor.model_path import local_model
from compressor.pass_ import Progress
from compressor.prequantized import import_prequantized, is_prequantized
from compressor.shards import has_shards
from compressor.stored import HEAD_WEIGHT, UNTIED
from compressor.tokenizer import check_tokenizer_code
from compressor.writer import CHAT_TEMPLATES, COMPANION_PATTERNS, LEGAL, copy_companions

HUB_FILES = ["*.json", "model*.safetensors", "llmc*.safetensors", "tokenizer*", "*.model", "*.jinja", "merges.txt",
             "vocab.*", *LEGAL]  # fmt: skip
HUB_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin"]
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class Source:
    """A model that is ready to be compressed.

    Attributes:
        imported: one sentence for the ledger when the input had to be converted, else None.
        revision: the commit of the hub's repository that it is of, else None.
        left_out: what is not copied from the files beside its weights.
    """

    checkpoint: Checkpoint
    imported: str | None = None
    revision: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What the ledger says of how the model was read."""
        fetched = self.revision and f"from the Hugging Face hub, commit {self.revision}"
        return [*filter(None, [fetched, self.imported]), *self.checkpoint.notes, *self.left_out]


def open_model(
    model: str,
    import_to: Path,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    requantize: bool = False,
    progress: Progress,
    check: Check = unchecked,
) -> Source:
    """Open a model by what its user calls it.

    A `config.json` with `auto_map` is fine: the model's own code is never run. Only its tokenizer may need code.

    Args:
        model: a folder, a .gguf file, or a hub id `org/name`, with a branch, tag or commit behind an @; the hub is
            asked only when no such path exists.
        import_to: folder for the converted model when conversion is needed; one that an earlier run made from
            the same input is used again.
        allow_pickle: whether pickle weights may be opened (without running code that is stored in them).
        trust_remote_code: whether a tokenizer may run code of the model's folder.
        requantize: open a quantized model as the float model that its integers and scales stand for.
        check: asked before a model is converted, which takes minutes.

    Raises:
        InputError: there is no such model, or it cannot be read.
    """
    local, commit = local_model(model), None
    path = None if local is None else find_gguf(local)
    if path is not None and path.is_file():
        from compressor.gguf import import_gguf

        return Source(*import_gguf(path, import_to, progress, dequantize=requantize, check=check))
    if path is None:
        path = _download(model, allow_pickle)
        commit = commit_of(path)
    left_out = tuple(refused_note(path))
    opened = _open_folder(path, import_to, allow_pickle, trust_remote_code, requantize, progress, check)
    return replace(opened, revision=commit, left_out=left_out)


def _open_folder(
    path: Path,
    import_to: Path,
    allow_pickle: bool,
    trust_remote_code: bool,
    requantize: bool,
    progress: Progress,
    check: Check,
) -> Source:
    if is_adapter(path):
        raise InputError(
            f"{path} is an adapter, not a model.", f"Give the model it was trained on, and --adapter {path}."
        )
    _refuse_pointers(path)
    check_tokenizer_code(path, trust_remote_code)
    if allow_pickle and not has_shards(path) and _pickle_shards(path):
        return _import_pickles(path, import_to, progress, check)
    if is_prequantized(path):
        return Source(*import_prequantized(path, import_to, progress, dequantize=requantize, check=check))
    checkpoint = Checkpoint.open(path)
    if requantize and (checkpoint.schemes or checkpoint.kv_cache):
        return Source(*dequantize(checkpoint, import_to, progress, check))
    return Source(checkpoint)


def is_gguf(path: Path) -> bool:
    """Whether a file is named as a GGUF file is."""
    return path.suffix.lower() == ".gguf"


def find_gguf(path: Path) -> Path:
    """The GGUF file that a folder without weights of another kind holds; any other path as it is.

    Raises:
        InputError: it holds several.
    """
    if not path.is_dir() or has_shards(path) or _pickle_shards(path) or is_adapter(path):
        return path
    files = sorted(file for file in path.iterdir() if is_gguf(file))
    if len(files) > 1:
        raise InputError(f"{path} holds {len(files)} GGUF files.", f"Name one of them, {files[0]} for example.")
    return files[0] if files else path


def _refuse_pointers(root: Path) -> None:
    """Refuse a folder whose tokenizer or configuration git-lfs has not fetched."""
    for pattern in ("config.json", *COMPANION_PATTERNS):
        for path in sorted(root.glob(pattern)):
            refuse_pointer(path)


# ---- the hub


def _download(model: str, allow_pickle: bool) -> Path:
    """The local snapshot of a hub model; pickle weights only when there are no others."""
    root = snapshot(model, HUB_FILES, [CHAT_TEMPLATES])
    if not has_shards(root):
        if not allow_pickle:
            raise InputError(
                f"{model} on the Hugging Face hub has no safetensors weights.",
                "Pass --allow-pickle if it has pytorch_model.bin and you trust its source.",
            )
        root = snapshot(model, HUB_FILES + HUB_PICKLES, [CHAT_TEMPLATES])
    return root


def snapshot(source: str, patterns: list[str], nested: Sequence[str] = ()) -> Path:
    """The local copy of a hub repository's files that match; fetched where it is not there.

    Args:
        patterns: of files in the repository's root; nothing in its folders is fetched by them.
        nested: of files in its folders.

    Raises:
        InputError: there is no such repository or revision, it is gated, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import errors, snapshot_download

    model, _, revision = source.partition("@")
    try:
        found = snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*/*"], revision=revision or None)
        if nested:  # of the very same commit
            same = commit_of(Path(found)) or revision or None
            snapshot_download(model, allow_patterns=[*nested], ignore_patterns=None, revision=same)
        return Path(found)
    except errors.GatedRepoError as error:
        raise InputError(
            f"{model} is gated on the Hugging Face hub.",
            f"Accept its terms at https://huggingface.co/{model} and log in with `hf auth login`.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{model} on the Hugging Face hub has no revision {revision}.", "Give a branch, a tag or a commit of it."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"There is no folder {model}, and no such model on the Hugging Face hub.",
            "Check the spelling; a private model needs `hf auth login`.",
        ) from error
    except (httpx.HTTPError, OSError) as error:
        if is_disk_full(error):
            raise RunError(f"The disk is full; {model} could not be downloaded.") from error
        raise InputError(
            f"There is no folder {model}, and the Hugging Face hub cannot be reached to look for it.",
            "Check the network, or download the model first and give its folder.",
        ) from error


# ---- pickle weights


def _pickle_shards(root: Path) -> list[str]:
    """File names of the folder's pickle weights in the layout of transformers; empty when it has none."""
    index = root / PICKLE_INDEX
    if index.is_file():
        try:
            shards = sorted(map(str, set(read_object(index)["weight_map"].values())))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is not an index of weights.") from error
        return [check_name(shard, index) for shard in shards]
    return [PICKLE] if (root / PICKLE).is_file() else []


def _import_pickles(root: Path, import_to: Path, progress: Progress, check: Check) -> Source:
    shards = _pickle_shards(root)
    missing = [name for name in shards if not inside(root, name, root).is_file()]
    if missing:
        raise InputError(f"Shard {root / missing[0]} is missing.", "Download the folder again.")
    config = read_config(root)
    check(Outline(resolve(config)))
    pickles = _Pickles(root, shards, resolve(config))
    role = pickles.head()
    said = [UNTIED] if role == "own" else []
    sentence = "; ".join([f"converted from pickle weights ({', '.join(shards)}) to safetensors", *said])
    provenance = {"import": "pickle", "files": digest_files(root, [*shards, "config.json"])}
    if found := converted_before(import_to, provenance):
        return Source(found, sentence)
    blocks = pickles.blocks(role, progress)
    provenance |= told_commit(root)
    return Source(
        write_converted(import_to, config, blocks, provenance, lambda out: copy_companions(root, out)), sentence
    )


@dataclass(frozen=True)
class _Pickles:
    """The pickle weights of one folder, read shard by shard; they are memory-mapped, and code in them does not run."""

    root: Path
    shards: list[str]
    architecture: Architecture

    def head(self) -> Literal["plain", "copy", "own", "table"]:
        """What a head is that config.json ties: no copy there, one, other values, or the only one of both tables."""
        if not self.architecture.tied_embeddings:
            return "plain"
        wanted = (f"{self.architecture.embedding}.weight", HEAD_WEIGHT)
        found = {name: tensor for shard in self.shards for name, tensor in self._of(shard) if name in wanted}
        if HEAD_WEIGHT not in found:
            return "plain"
        if len(found) == 1:
            return "table"
        return "copy" if torch.equal(*found.values()) else "own"

    def blocks(self, role: str, progress: Progress) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors one by one, without a copy of the head, which would untie it."""
        for number, shard in enumerate(self.shards):
            progress("converting pickle weights", number, len(self.shards))
            for name, tensor in self._of(shard):
                if name == HEAD_WEIGHT and role == "table":
                    yield {f"{self.architecture.embedding}.weight": tensor.clone()}
                elif name != HEAD_WEIGHT or role != "copy":
                    yield {name: (tensor.T if self.architecture.is_transposed(name) else tensor).clone()}
        progress("converting pickle weights", len(self.shards), len(self.shards))

    def _of(self, shard: str) -> Iterator[tuple[str, torch.Tensor]]:
        family = FAMILIES[self.architecture.model_type]
        for short, tensor in load_pickle(self.root / shard).items():
            name = full_name(short, family.optional_prefix)
            if not name.endswith(family.ignored):
                yield name, tensor


def load_pickle(path: Path) -> Mapping[str, torch.Tensor]:
    """The named tensors of a pickle, memory-mapped; code in it does not run.

    Raises:
        InputError: it holds something else, is truncated, or its archive is compressed.
    """
    state = _load_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict: it holds something other than named tensors.")
    return state


def _load_tensors(path: Path) -> Any:
    import pickle

    refuse_pointer(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # files of PyTorch before 1.6 are not, and cannot be mapped
    if is_zip:
        _check_plain(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds Python objects that are not tensors, which are not opened.") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} is truncated or not a PyTorch file.", "Download it again.") from error


def _check_plain(path: Path) -> None:
    """PyTorch's archives are not compressed: a mapped file would give compressed bytes for weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path} is truncated or not a PyTorch file.", "Download it again.") from error
    if packed:
        raise InputError(
            f"{path} is a compressed archive ({packed[0]}), which PyTorch does not write.",
            "Save its tensors again with torch.save.",
        )
