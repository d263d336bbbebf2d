"""A recipe of llm-compressor, and what it will do, found out before it does it.

Source: vllm-project/llm-compressor 0.14, recipe/recipe.py and modifiers/factory.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor import layout
from compressor.architecture import Architecture
from compressor.errors import InputError, RunError, nearest
from compressor.quantized import Scheme
from compressor.yaml_file import read_yaml
from passes.llmcompressor_engine import look_up

ROTATING = ("QuIPModifier", "SpinQuantModifier")


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe as plain values: stages of groups of modifiers, `{x_stage: {y_modifiers: {Name: options}}}`.

    Raises:
        InputError: it cannot be read, has a key that llm-compressor would pass over in silence, or leaves rotations.
    """
    recipe, _ = read_yaml(path, "The llm-compressor recipe")
    _check_keys(path, recipe, "_stage")
    for stage in recipe.values():
        _check_keys(path, stage, "_modifiers")
        for modifiers in stage.values():
            _check_keys(path, modifiers, "Modifier")
            _refuse_rotations(path, modifiers)
    return recipe


def _check_keys(path: Path, section: Any, ending: str) -> None:
    if not isinstance(section, Mapping) or not section:
        raise InputError(f"The llm-compressor recipe {path} has no section of keys that end in {ending}.")
    strange = [key for key in section if not str(key).endswith(ending)]
    if strange:
        raise InputError(f"The llm-compressor recipe {path} has the key {strange[0]!r} where keys end in {ending}.")


def _refuse_rotations(path: Path, modifiers: Mapping[str, Any]) -> None:
    for name in ROTATING:
        if name in modifiers:
            raise InputError(
                f"{name} ({path}) leaves rotations for run time, which no target here applies.",
                "The pass rotate folds its rotations into the weights.",
            )


def wants_text(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether it calibrates.

    Raises:
        InputError: llm-compressor refuses the recipe, or is not here.
    """
    return bool(_asked(path, {"do": "modifiers", "recipe": recipe})["calibrates"])


def predict_schemes(path: Path, recipe: Mapping[str, Any], architecture: Architecture) -> dict[str, Scheme]:
    """What the recipe will make of each linear.

    Raises:
        InputError: llm-compressor refuses the recipe or is not here, a scheme or a group size cannot be held, or the
            embedding is to be quantized.
    """
    linears = architecture.linears()
    embedding = [architecture.embedding, architecture.vocab_size, architecture.hidden_size]
    asked = _asked(path, {"do": "schemes", "recipe": recipe, "linears": linears, "embedding": embedding})
    schemes: dict[str, Scheme] = {}
    for modifier in asked["quantizing"]:
        layout.reads_kv_cache({"quantization_config": modifier["config"]})
        if modifier["embedding"]:
            raise InputError("The llm-compressor recipe quantizes the embedding, which cannot be held.", "Ignore it.")
        for name, group in modifier["groups"].items():
            schemes |= _as_stored(name, group)
            schemes[name].group_width(linears[name][1])
    return schemes


def _as_stored(name: str, group: Mapping[str, Any]) -> dict[str, Scheme]:
    """Our scheme for one layer, as it will be read from the config.json that llm-compressor writes."""
    config = {"quant_method": "compressed-tensors", "format": group["format"], "config_groups": {"group_0": group}}
    return layout.read_schemes({"quantization_config": config}, [name])


def _asked(path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    answer = look_up(request)
    if "broke" in answer:
        raise RunError(f"llm-compressor broke on the recipe {path}: {answer['broke'].rstrip('.')}.")
    if "refused" in answer:
        raise _refusal(path, answer["refused"])
    return answer


def _refusal(path: Path, why: Mapping[str, Any]) -> InputError:
    if "unknown" in why:
        name = why["unknown"]
        return InputError(f"llm-compressor has no modifier {name!r} ({path}); {nearest(name, why['known'])}")
    if "nothing" in why:
        hint = "Add a QuantizationModifier or a GPTQModifier."
        return InputError(f"The recipe {path} quantizes nothing ({', '.join(why['nothing'])}).", hint)
    part = f"{why['option']} of the recipe" if "option" in why else "the recipe"
    return InputError(f"llm-compressor refuses {part} {path}: {why['why']}.")
