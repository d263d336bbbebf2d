"""What an adapter's configuration promises, held against what its file has: half of one is said, or refused.

Which modules are meant is decided as in `check_target_module_exists` of huggingface/peft 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set

from compressor.adapter import CONFIG_FILE, Adapter
from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.families import HEAD
from compressor.patterns import matches

LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")
SAVE_AGAIN = "Save it again from the training run; with FSDP or DeepSpeed ZeRO-3, gather its parameters first."


def refusal_of_strangers(adapter: Adapter, strangers: Sequence[str]) -> InputError:
    """Why tensors of an adapter have no place in the model."""
    task, first = adapter.config.get("task_type"), strangers[0]
    if task not in (None, "CAUSAL_LM") and "." not in first.rpartition(".")[0]:
        return InputError(
            f"The adapter {adapter.source} was trained for the task {task}: it brings {first}, a head for which a "
            "language model has no place.",
            "llmc takes causal language models.",
        )
    more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
    trained = f"It was trained on {adapter.base}." if adapter.base else None
    return InputError(f"The adapter {adapter.source} changes {first}{more}, which the model lacks.", trained)


def check_saved_modules(adapter: Adapter, found: Set[str], architecture: Architecture) -> None:
    """See that the file holds what was trained whole; peft does not open an adapter that lacks it.

    Args:
        found: names of the parameters that the adapter changes.

    Raises:
        InputError: it does not.
    """
    modules = {name.rpartition(".")[0] for name in architecture.tensor_shapes()} | {HEAD}
    held = {name.rpartition(".")[0] for name in found}
    names = adapter.config.get("modules_to_save") or []
    for name in [names] if isinstance(names, str) else names:
        meant = {module for module in modules if _ends_with(module, name)}
        if architecture.tied_embeddings and architecture.embedding in held:
            meant -= {HEAD}
        if meant - held:
            raise InputError(
                f"The adapter {adapter.source} is incomplete: its modules_to_save names {name}, which was trained "
                f"whole, and its file does not hold {min(meant - held)}.",
                SAVE_AGAIN,
            )


def missing_notes(adapter: Adapter, found: Set[str], architecture: Architecture) -> Iterator[str]:
    """A warning where the file lacks modules that were trained; peft warns too, and leaves these as they are."""
    targeted = [name for name in (*architecture.linears(), architecture.embedding) if _is_targeted(adapter, name)]
    missing = [name for name in targeted if f"{name}.weight" not in found]
    if missing:
        yield (
            f"WARNING: {adapter.source} is incomplete: its target_modules mean {len(targeted)} modules of this model, "
            f"and its file lacks {len(missing)} of them, {missing[0]} for one, which stay as the base has them"
        )


def _is_targeted(adapter: Adapter, module: str) -> bool:
    config = adapter.config
    excluded = config.get("exclude_modules")
    if excluded and _is_named(adapter, "exclude_modules", module):
        return False
    wanted = config.get("target_modules")
    if config.get("layers_pattern") or not wanted:
        return False  # told by the tensors alone
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return module != HEAD and "embed" not in module and not module.endswith("wte")
    return _is_named(adapter, "target_modules", module) and _is_in_layers(config.get("layers_to_transform"), module)


def _is_named(adapter: Adapter, key: str, module: str) -> bool:
    names = adapter.config[key]
    if isinstance(names, str):
        return matches(names, module, f"{adapter.root / CONFIG_FILE}, {key},", whole=True)
    return any(_ends_with(module, name) for name in names)


def _is_in_layers(layers: int | Sequence[int] | None, module: str) -> bool:
    if layers is None or layers == []:
        return True
    match = LAYER.match(f"{module}.")
    return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)


def _ends_with(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")
