"""What a model, an adapter, a .gguf file, an artifact or a run's folder is, from headers only."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.architecture import Architecture

ADAPTER_BESIDE = (
    "adapter_config.json lies beside the weights, and transformers applies the adapter on opening them; compress asks "
    "for --adapter with this folder, to merge it, or for --no-adapter"
)


def describe(path: Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Facts about a path, by the kind of thing it is.

    Raises:
        InputError: it is nothing that is known here.
    """
    from compressor.adapter import is_adapter
    from compressor.run_folder import LEDGER_FILE, runs_in
    from compressor.source import find_gguf, is_gguf
    from compressor.target import MANIFEST

    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if (path / MANIFEST).is_file():
        return _artifact(path)
    if (path / LEDGER_FILE).is_file():
        return _run(path)
    if runs := runs_in(path):
        return {"kind": "runs for several targets", "targets": ", ".join(run.name for run in runs)}
    if is_adapter(path):
        return _adapter(path, allow_pickle)
    if is_gguf(found := find_gguf(path)):
        return _gguf(found)
    return _model(path)


def _model(path: Path) -> dict[str, Any]:
    from compressor.adapter import holds_adapter
    from compressor.checkpoint import Checkpoint
    from compressor.prequantized import PackedFolder, is_prequantized
    from compressor.report.tables import size

    beside = {"adapter": ADAPTER_BESIDE} if holds_adapter(path) else {}
    checkpoint = PackedFolder.open(path) if is_prequantized(path) else Checkpoint.open(path)
    quantized = str(checkpoint.layout) if isinstance(checkpoint, PackedFolder) else "quantized"
    only_values = isinstance(checkpoint, PackedFolder) and checkpoint.layout.only_values
    schemes = Counter(quantized if only_values else str(one) for one in checkpoint.schemes.values()) or {
        "none": len(checkpoint.architecture.linears())
    }
    layers = checkpoint.with_factors if isinstance(checkpoint, PackedFolder) else []
    factors = {"pre_quant_scale": dict(Counter(layer.rpartition(".")[2] for layer in layers))} if layers else {}
    cached = {"key-value cache": "fp8"} if checkpoint.kv_cache else {}
    return {
        "kind": f"{quantized} model folder" if checkpoint.schemes else "model folder",
        **_shape(checkpoint.architecture),
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "weights": f"{size(checkpoint.nbytes)} in {len({info.shard for info in checkpoint.tensors.values()})} shards",
        "quantized linears": dict(schemes),
        **factors,
        **cached,
        **beside,
        **({"notes": "; ".join(checkpoint.notes)} if checkpoint.notes else {}),
    }


def _adapter(path: Path, allow_pickle: bool) -> dict[str, Any]:
    from compressor.adapter.folder import WHOLE, open_adapter, pickle_of
    from compressor.report.tables import size

    pickled = pickle_of(str(path))
    if pickled is not None and not allow_pickle:
        raise InputError(
            f"{pickled} is a pickle, which can run code when opened.", "Pass --allow-pickle if you trust its source."
        )
    adapter = open_adapter(str(path))
    low_rank = Counter(module.rpartition(".")[2] for module, parts in adapter.modules.items() if parts.keys() - WHOLE)
    trained = Counter(module.rpartition(".")[2] for module, parts in adapter.modules.items() if parts.keys() <= WHOLE)
    scalings = sorted({adapter.scaling(module) for module, parts in adapter.modules.items() if parts.keys() - WHOLE})
    return {
        "kind": f"{adapter.kind} adapter",
        "base": adapter.base or "not said",
        "revision": adapter.config.get("revision") or "not said",
        "rank": ", ".join(map(str, adapter.ranks)),
        "scaling": ", ".join(f"{scaling:g}" for scaling in scalings),
        "changes": dict(low_rank),
        **({"trained whole": dict(trained)} if trained else {}),
        "parameters": f"{adapter.parameters:,}",
        "weights": size(adapter.nbytes),
        "made by": f"peft {adapter.config.get('peft_version', '(version not said)')}",
    }


def _gguf(path: Path) -> dict[str, Any]:
    from compressor.architecture import resolve
    from compressor.gguf.config import build_config
    from compressor.gguf.container import GgufFile
    from compressor.report.tables import size

    file = GgufFile.open(path)
    kinds = Counter(tensor.kind for tensor in file.tensors.values())
    shape = _shape(resolve(build_config(file)))
    return {"kind": "GGUF file", **shape, "weights": size(path.stat().st_size), "tensors": dict(kinds)}


def _shape(shape: Architecture) -> dict[str, Any]:
    return {
        "family": f"{shape.model_type} ({shape.class_name})",
        "parameters": f"{shape.parameters:,}",
        "shape": f"{shape.layers} layers, width {shape.hidden_size}, MLP {shape.intermediate_size}, "
        f"{shape.heads} heads of {shape.head_dim}, {shape.kv_heads} KV heads, vocabulary {shape.vocab_size}",
        "context": shape.max_positions,
        "embedding": "tied to lm_head" if shape.tied_embeddings else "separate lm_head",
    }


def _artifact(path: Path) -> dict[str, Any]:
    from compressor.files import folder_bytes
    from compressor.manifest import read_manifest
    from compressor.report.tables import size

    manifest = read_manifest(path)
    return {
        "kind": "artifact",
        "target": manifest.target,
        "options": json.dumps(manifest.options),
        "quantized linears": dict(Counter(manifest.schemes.values())),
        "made from": manifest.input,
        "files": f"{len(manifest.files)}, {size(folder_bytes(path))}",
    }


def _run(path: Path) -> dict[str, Any]:
    from compressor.ledger import load_ledger
    from compressor.report.tables import verdict

    ledger = load_ledger(path)
    return {
        "kind": "run",
        "model": ledger.model,
        "steps": " -> ".join(row.name for row in ledger.steps),
        "artifact": ledger.artifact.target if ledger.artifact else "none yet",
        "verdict": verdict(ledger),
        "ledger's digest": ledger.digest or "none: it is of an earlier version, and a change would not show",
    }
