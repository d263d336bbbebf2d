"""An adapter's `adapter_config.json`: every key is known, or says nothing; values that decide numbers are numbers.

Format: the configurations of huggingface/peft 0.21 (`LoraConfig`, `LoHaConfig`, `LoKrConfig`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import InputError
from compressor.json_file import read_object

CONFIG_FILE = "adapter_config.json"
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
STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica", "lycoris")  # that leave the base as it is
# What training was like, where it was said: nothing of it decides what is merged, or the tensors tell it themselves.
TRAINING = (
    "auto_mapping", "bias", "corda_config", "decompose_both", "decompose_factor", "eva_config",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "init_weights", "layers_pattern",
    "loftq_config", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "module_dropout", "peft_version", "qalora_group_size", "rank_dropout", "rank_dropout_scale", "task_type",
    "use_effective_conv2d",
    # of ms-swift: its learning rates, and the dtype that it trained in
    "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio",
)  # fmt: skip
MERGE_WITH_PEFT = "Merge it with peft's merge_and_unload, and compress the outcome."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(one == 0 or _is_count(one) for one in value)


def _is_token_indices(value: Any) -> bool:
    return value is None or _is_rows(value) or (isinstance(value, dict) and all(map(_is_rows, value.values())))


def _of_each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, dict) and all(map(fits, value.values())))


# Keys that decide what is merged, and what their values have to be.
DECISIVE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: isinstance(value, str), "a name"),
    "r": (_is_count, "a rank of 1 or more"),
    "lora_alpha": (_is_number, "a finite number"),
    "alpha": (_is_number, "a finite number"),
    "rank_pattern": (_of_each(_is_count), "names of modules with ranks of 1 or more"),
    "alpha_pattern": (_of_each(_is_number), "names of modules with finite numbers"),
    "use_rslora": (_is_flag, "true or false"),
    "use_dora": (_is_flag, "true or false"),
    "ensure_weight_tying": (_is_flag, "true or false"),
    "trainable_token_indices": (_is_token_indices, "a list of token numbers, or one for each module"),
    "exclude_modules": (_is_names, "names of modules, or a regular expression"),
    "layers_to_transform": (
        lambda value: value is None or value == 0 or _is_count(value) or _is_rows(value),
        "a list of layers",
    ),
    "target_modules": (_is_names, "names of modules, or a regular expression"),
    "modules_to_save": (_is_names, "names of modules"),
    "base_model_name_or_path": (_is_text, "a name"),
    "revision": (_is_text, "a name"),
}


def read_adapter_config(root: Path, source: str) -> dict[str, Any]:
    """The configuration of the adapter in a folder.

    Args:
        source: what its user calls it.

    Raises:
        InputError: there is none, or it describes an adapter that is not merged here.
    """
    config = _read(root / CONFIG_FILE, root)
    _check_kind(source, config)
    _check_values(source, config)
    _check_keys(source, config)
    return config


def _read(path: Path, root: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{root} is not a PEFT adapter: it has no {CONFIG_FILE}.")
    config = read_object(path)
    if "peft_type" not in config:
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
        raise InputError(f"The adapter {source} was trained with {other}, which is not merged here.", MERGE_WITH_PEFT)
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGES_BASE):
        raise InputError(
            f"The adapter {source} starts from init_lora_weights={start!r}, which changed its base's weights too.",
            "Save it as an ordinary LoRA (peft's `path_initial_model_for_weight_conversion`), or merge it with peft.",
        )
    if start not in (*STARTS, "none"):
        raise InputError(
            f"The adapter {source} starts from init_lora_weights={start!r}, which is not known here and may have "
            "changed its base's weights.",
            MERGE_WITH_PEFT,
        )


def _check_values(source: str, config: Mapping[str, Any]) -> None:
    for key, (fits, wanted) in DECISIVE.items():
        if key in config and not fits(config[key]):
            raise InputError(f"The adapter {source} says {key}={_shown(config[key])}, which is not {wanted}.")


def _check_keys(source: str, config: Mapping[str, Any]) -> None:
    """Newer versions of peft write keys that are not known here; those that are off say nothing."""
    known = {*DECISIVE, *TRAINING, *OTHER_LORAS}
    strange = next((key for key, value in config.items() if key not in known and not _is_off(value)), None)
    if strange is not None:
        raise InputError(
            f"The adapter {source} has the setting {strange}={_shown(config[strange])}, which is not known here and "
            "may change what it computes.",
            f"{MERGE_WITH_PEFT} If the setting means nothing for merging, take it out of {CONFIG_FILE}.",
        )


def _is_off(value: Any) -> bool:
    """Whether a value says nothing: null, false, or empty."""
    return value is None or value is False or value in ("", [], {})


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
