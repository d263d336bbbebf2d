"""The `quantization_config` of config.json: which layers are quantized, and how; whether the key-value cache is fp8."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from compressor.errors import InputError
from compressor.families import EMBEDDINGS, HEAD
from compressor.layout import extensions, nf4, nvfp4
from compressor.layout.tensors import FLOAT, INT, LOW_RANK, PACK, storage_format
from compressor.patterns import matches
from compressor.quantized import Activations, Scheme, low_rank_scheme

METHOD, MIXED, DENSE = "compressed-tensors", "mixed-precision", "dense"
NAIVE = "naive-quantized"  # what the library calls int-quantized and float-quantized when nobody names the format
READABLE = (PACK, INT, FLOAT, nvfp4.FORMAT, LOW_RANK, MIXED, NAIVE, DENSE)

TABLES = EMBEDDINGS | {HEAD}  # may be one and the same

# Of weights and of activations; the library's name for what has block scales and one for the tensor.
NVFP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": nvfp4.BLOCK}
BLOCK_SCALES = {"scale_dtype": str(nvfp4.SCALE_DTYPE)}

KV_CACHE = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def quantization_config(
    schemes: Mapping[str, Scheme],
    linears: Iterable[str],
    kv_cache: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The `quantization_config` for the quantized layers `schemes` out of all `linears`.

    Args:
        kv_cache: the key-value cache is fp8, with one scale a layer for keys and one for values.
        dtype: what the model computes in; only NF4 folders say it here.

    Raises:
        InputError: no single folder can hold all of this.
    """
    check_together(schemes, kv_cache)
    if any(scheme.type == "nf4" for scheme in schemes.values()):
        return nf4.quantization_config(schemes, linears, dtype)
    formats = dict.fromkeys(storage_format(scheme) for scheme in schemes.values()) or {DENSE: None}
    mixed = len(formats) > 1
    config = {
        "quant_method": extensions.METHOD if any(scheme.extensions for scheme in schemes.values()) else METHOD,
        "format": MIXED if mixed else next(iter(formats)),
        "quantization_status": "compressed",
        "ignore": [name for name in linears if name not in schemes],
        "config_groups": _groups(schemes, mixed),
    }
    return config | {"kv_cache_scheme": KV_CACHE} if kv_cache else config


def check_together(schemes: Mapping[str, Scheme], kv_cache: bool = False) -> None:
    """See that one folder can hold these: transformers reads NF4 and everything else from different ones.

    Raises:
        InputError: it cannot.
    """
    extended = next((name for name, one in schemes.items() if one.extensions and one.type == "nf4"), None)
    if extended is not None:
        raise InputError(f"{extended} is {schemes[extended]}, which no folder holds.")
    first: dict[str, str] = {}
    for name, scheme in schemes.items():
        first.setdefault(str(scheme) if scheme.type == "nf4" else "other", name)
    ((kind, layer), *others) = first.items() or [("other", "")]
    if others:
        other = others[0][1]
        raise InputError(
            f"{layer} is {schemes[layer]} and {other} is {schemes[other]}, which no single folder holds.",
            "Use nf4 for all layers or for none.",
        )
    if kv_cache and kind != "other":
        raise InputError(f"A folder whose layers are {kind} holds no scales of an fp8 key-value cache.")


def _groups(schemes: Mapping[str, Scheme], mixed: bool) -> dict[str, Any]:
    distinct = list(dict.fromkeys(schemes.values()))
    groups = {}
    for number, scheme in enumerate(distinct):
        names = [name for name in schemes if schemes[name] == scheme]
        group = {
            # One scheme is written the way every reader expects it; several, and an embedding, need names.
            "targets": ["Linear"] if len(distinct) == 1 and not scheme.table else names,
            "weights": _weight_arguments(scheme),
            "input_activations": _activation_arguments(scheme.activations),
            "output_activations": None,
        }
        # Older readers refuse the key, so it is written only where it says something: the library takes every
        # weight-only int8 for packed.
        stored_as = {"format": storage_format(scheme)} if mixed or scheme.table else {}
        groups[f"group_{number}"] = group | stored_as | extensions.arguments(scheme)
    return groups


def _weight_arguments(scheme: Scheme) -> dict[str, Any]:
    if scheme.type == "low-rank":
        return {"type": scheme.type}
    if scheme.kind == "nvfp4":
        return NVFP4 | BLOCK_SCALES | {"dynamic": False}
    whole = "tensor" if scheme.per_tensor else "channel"
    arguments = {
        "num_bits": scheme.bits,
        "type": scheme.type,
        "symmetric": scheme.symmetric,
        "strategy": whole if scheme.group_size is None else "group",
        "dynamic": False,
    }
    return arguments if scheme.group_size is None else arguments | {"group_size": scheme.group_size}


def _activation_arguments(activations: Activations | None) -> dict[str, Any] | None:
    if activations is None:
        return None
    if activations.bits == 4:
        return NVFP4 | BLOCK_SCALES | {"dynamic": "local"}  # block scales are found while running
    return {
        "num_bits": activations.bits,
        "type": activations.type,
        "symmetric": True,
        "strategy": "token" if activations.dynamic else "tensor",
        "dynamic": activations.dynamic,
    }


def read_schemes(config: Mapping[str, Any], linears: Iterable[str]) -> dict[str, Scheme]:
    """Which of `linears` are quantized, and how, according to config.json's `quantization_config`.

    Raises:
        InputError: the folder is quantized in a way that has no `Scheme`.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return {}
    method, layout = quantization.get("quant_method"), quantization.get("format")
    if method == nf4.METHOD:
        # bitsandbytes rounds linears only: a table is never among its layers, whatever the patterns say.
        return nf4.read_schemes(quantization, [name for name in linears if name not in EMBEDDINGS])
    if method not in (METHOD, extensions.METHOD) or layout not in READABLE:
        raise InputError(
            f"The model is already quantized ({method}, {layout}), which cannot be read.",
            f"Start from the float checkpoint, or from a folder of compressed-tensors ({PACK}, {INT}, {FLOAT}) or NF4.",
        )
    ignored = quantization.get("ignore") or ()
    groups = list(quantization["config_groups"].values())
    schemes: dict[str, Scheme] = {}
    for name in linears:
        group = None if any(_specificity(name, pattern) for pattern in ignored) else _group_of(name, groups)
        if group is not None:
            schemes[name] = _scheme(group, layout, name in TABLES)
    return schemes


def reads_kv_cache(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that the key-value cache is fp8 with stored scales.

    Raises:
        InputError: it is quantized in another way.
    """
    arguments = (config.get("quantization_config") or {}).get("kv_cache_scheme")
    if not arguments:
        return False
    if any(arguments.get(key, default) != default for key, default in KV_CACHE.items()):
        raise InputError("The key-value cache is quantized in a way that cannot be read; fp8 with static scales can.")
    return True


def _group_of(name: str, groups: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The group with the most specific target: a name before a pattern, a pattern before the class `Linear`."""
    ranked = [(max((_specificity(name, target) for target in group["targets"]), default=0), group) for group in groups]
    rank, group = max(ranked, key=lambda pair: pair[0], default=(0, {}))
    return group if rank else None


def _specificity(name: str, target: str) -> int:
    """How closely a target or an ignore pattern means the layer `name`; 0 is not at all."""
    if target.startswith("re:"):
        return 2 if matches(target[3:], name, "quantization_config") else 0
    if fnmatch.fnmatchcase(name, target) or name.endswith("." + target):
        return 3
    return 1 if target == ("Embedding" if name in EMBEDDINGS else "Linear") else 0


def _scheme(group: Mapping[str, Any], layout: str, may_be_table: bool) -> Scheme:
    weights, inputs = group["weights"], group.get("input_activations") or None
    if weights.get("type") == "low-rank":
        return extensions.extended(low_rank_scheme(0), group)
    activations = None if inputs is None else _activations(inputs)
    is_nvfp4 = weights.get("type") == "float" and weights.get("num_bits") == 4
    strategies = ("tensor_group",) if is_nvfp4 else ("group", "channel", "tensor")
    supported = (
        weights.get("strategy") in strategies
        and weights.get("type") in ("int", "float")
        and weights.get("num_bits") in (4, 8)
        and not weights.get("dynamic")
        and weights.get("actorder") in (None, "static", "weight")
        and not group.get("output_activations")
        and (inputs is None or activations is not None)
    )
    if supported:
        group_size = weights.get("group_size") if weights["strategy"].endswith("group") else None
        stored_as = group.get("format") or layout
        scheme = Scheme(
            weights["num_bits"],
            group_size,
            weights["symmetric"],
            weights["type"],
            activations,
            per_tensor=weights["strategy"] == "tensor",
        )
        if may_be_table and scheme.type == "int" and activations is None:
            scheme = replace(scheme, table=stored_as in (INT, NAIVE))
        if _is_stored(scheme, stored_as):
            return extensions.extended(scheme, group)
    raise InputError(
        "The folder's layers are quantized in a way that cannot be read; weight-only int4 and int8, int8 and fp8 with "
        "one scale a channel (fp8: or a tensor) and activations of their own type, and NVFP4 can.",
        "Start from the float checkpoint.",
    )


def _activations(arguments: Mapping[str, Any]) -> Activations | None:
    """What the arguments describe, or None if it has no `Activations`."""
    dynamic = arguments.get("dynamic", False)
    if dynamic == "local" and all(arguments.get(key, True) == value for key, value in NVFP4.items()):
        return Activations(4, "float", dynamic=False)
    fits = (
        arguments.get("num_bits") == 8
        and arguments.get("type") in ("int", "float")
        and arguments.get("symmetric", True)
        and arguments.get("strategy") == ("token" if dynamic else "tensor")
        and isinstance(dynamic, bool)
    )
    return Activations(8, arguments["type"], dynamic) if fits else None


def _is_stored(scheme: Scheme, layout: str) -> bool:
    """Whether the format that a group names is the one in which its scheme is kept."""
    expected, activations = storage_format(scheme), scheme.activations
    of_one_type = activations is None or (activations.type, activations.bits) == (scheme.type, scheme.bits)
    if scheme.kind == "nvfp4":
        return of_one_type and layout == expected and scheme.group_size == nvfp4.BLOCK and scheme.symmetric
    if scheme.per_tensor and scheme.type != "float":
        return False
    if expected == PACK:
        return layout == PACK
    plain = scheme.table or (scheme.bits == 8 and scheme.group_size is None and scheme.symmetric)
    return plain and of_one_type and layout in (expected, NAIVE)
