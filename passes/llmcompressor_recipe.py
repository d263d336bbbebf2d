"""What a recipe of llm-compressor will do, found out before it does it.

Source: vllm-project/llm-compressor 0.14, recipe/recipe.py and modifiers/factory.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from compressor import layout
from compressor.architecture import Architecture
from compressor.errors import InputError, nearest
from compressor.quantized import Scheme

ROTATING = ("QuIPModifier", "SpinQuantModifier")


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe as plain values: stages of groups of modifiers, `{x_stage: {y_modifiers: {Name: options}}}`.

    Raises:
        InputError: it cannot be read, or has a key that llm-compressor would pass over in silence.
    """
    try:
        recipe = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The llm-compressor recipe {path} cannot be read: {str(error).splitlines()[0]}.") from error
    _check_keys(path, recipe, "_stage")
    for stage in recipe.values():
        _check_keys(path, stage, "_modifiers")
        for modifiers in stage.values():
            _check_keys(path, modifiers, "Modifier")
    return recipe


def _check_keys(path: Path, section: Any, ending: str) -> None:
    if not isinstance(section, Mapping) or not section:
        raise InputError(f"The llm-compressor recipe {path} has no section of keys that end in {ending}.")
    strange = [key for key in section if not str(key).endswith(ending)]
    if strange:
        raise InputError(f"The llm-compressor recipe {path} has the key {strange[0]!r} where keys end in {ending}.")


def build_modifiers(path: Path, recipe: Mapping[str, Any]) -> list[Any]:
    """llm-compressor's own objects for a recipe, in run order.

    Raises:
        InputError: it does not know a modifier or refuses its options, or the recipe quantizes nothing.
    """
    from llmcompressor.modifiers import ModifierFactory
    from llmcompressor.modifiers.quantization import QuantizationMixin
    from llmcompressor.recipe import Recipe
    from pydantic import ValidationError

    ModifierFactory.refresh()
    known = ModifierFactory._main_registry
    for name in (name for stage in recipe.values() for group in stage.values() for name in group):
        if name not in known:
            raise InputError(f"llm-compressor has no modifier {name!r} ({path}); {nearest(name, known)}")
        if name in ROTATING:
            raise InputError(
                f"{name} ({path}) leaves rotations for run time, which no target here applies.",
                "The pass rotate folds its rotations into the weights.",
            )
    try:
        modifiers = Recipe.from_dict(dict(recipe)).modifiers
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"]) or "an option"
        raise InputError(f"llm-compressor refuses {option} of the recipe {path}: {first['msg']}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"llm-compressor refuses the recipe {path}: {str(error).splitlines()[0]}") from error
    if not any(isinstance(modifier, QuantizationMixin) for modifier in modifiers):
        raise InputError(
            f"The recipe {path} quantizes nothing ({', '.join(type(one).__name__ for one in modifiers)}).",
            "Add a QuantizationModifier or a GPTQModifier.",
        )
    return modifiers


def predict_schemes(modifier: Any, architecture: Architecture) -> dict[str, Scheme]:
    """What a quantizing modifier will make of each linear, asked of compressed-tensors itself on weightless modules.

    Raises:
        InputError: a scheme or a group size that cannot be held, or the embedding is to be quantized.
    """
    from compressed_tensors.quantization import apply_quantization_config

    config = modifier.resolved_config
    layout.reads_kv_cache({"quantization_config": config.model_dump(mode="json")})
    modules = _weightless(architecture)
    apply_quantization_config(modules, config.model_copy(update={"kv_cache_scheme": None}), show_progress=False)
    if hasattr(modules.get_submodule(architecture.embedding), "quantization_scheme"):
        raise InputError("The llm-compressor recipe quantizes the embedding, which cannot be held.", "Ignore it.")
    schemes: dict[str, Scheme] = {}
    for name, (_, in_features) in architecture.linears().items():
        scheme = getattr(modules.get_submodule(name), "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            schemes |= _as_stored(name, scheme)
            schemes[name].group_width(in_features)
    return schemes


def _weightless(architecture: Architecture) -> nn.Module:
    """The model's linears and its embedding under their names, on the meta device."""
    root = nn.Module()
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            name: nn.Linear(in_features, out_features, bias=False)
            for name, (out_features, in_features) in architecture.linears().items()
        }
        modules[architecture.embedding] = nn.Embedding(architecture.vocab_size, architecture.hidden_size)
    for name, module in modules.items():
        *path, leaf = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, module)
    return root


def _as_stored(name: str, scheme: Any) -> dict[str, Scheme]:
    """Our scheme for one layer, as it will be read from the config.json that llm-compressor writes."""
    from compressed_tensors.compressors.format import infer_module_format

    stored_as = scheme.format or infer_module_format(nn.Linear, scheme)
    group = scheme.model_dump(mode="json") | {"targets": [name], "format": stored_as}
    config = {"quant_method": "compressed-tensors", "format": stored_as, "config_groups": {"group_0": group}}
    return layout.read_schemes({"quantization_config": config}, [name])
