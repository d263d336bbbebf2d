"""From the words of `llmc compress` to recipes, one a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.recipe import Recipe


def recipes_of(model: str | None, recipe_file: Path | None, options: Mapping[str, Any]) -> list[Recipe]:
    """The recipes that the options of the command line, and a recipe file if there is one, ask for.

    Raises:
        InputError: something is missing, or does not go together.
    """
    from compressor.recipe import load_recipes, make_recipes

    given = _given(model, options)
    if options["bits"] is not None and (recipe_file is not None or options["passes"]):
        other = "--pass" if options["passes"] else "--recipe"
        raise InputError(f"--bits and {other} both say which passes run; give one of them.")
    if recipe_file is not None:
        return _with_target_options(load_recipes(recipe_file, given), options)
    if model is None:
        raise InputError("Which model? Give a folder, a .gguf file or a hub id.", "llmc compress MODEL --target TARGET")
    if not options["targets"]:
        from compressor.registry import TARGETS, names

        raise InputError("Which target? Give --target.", "Targets: " + ", ".join(names(TARGETS)) + ".")
    if "calibration" in given and "texts" not in given["calibration"]:
        raise InputError("--samples, --length, --seed and --strict are about calibration text; give --calibration too.")
    recipes, bits = make_recipes(given), options["bits"]
    return _with_target_options(recipes if bits is None else [one.with_bits(bits) for one in recipes], options)


def _with_target_options(recipes: Sequence[Recipe], options: Mapping[str, Any]) -> list[Recipe]:
    """The recipes with the options of targets that the command line has words for, each option where it is known.

    One that no target knows goes to all of them, to be refused.
    """
    level, sm = options["accuracy_level"], options["sm"]
    chosen = _set({"accuracy_level": level and int(level), "sm": sm and sm.split(",")})
    if not chosen:
        return list(recipes)
    known = [recipe.build_target().options().keys() for recipe in recipes]
    foreign = chosen.keys() - set().union(*known)
    return [
        recipe.with_target_options({name: chosen[name] for name in chosen if name in names | foreign})
        for recipe, names in zip(recipes, known, strict=True)
    ]


def _given(model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line says, in the recipe's own shape; what it does not say is left out."""
    calibration = {
        "texts": options["calibration"],
        "samples": options["samples"],
        "length": options["length"],
        "seed": options["seed"],
        "strict": options["strict"] or None,
    }
    latency = {"batch": list(options["batch"]) or None, "prompt": options["prompt"], "output": options["output_tokens"]}
    measure = {
        "texts": options["evaluation"],
        "tasks": list(options["tasks"]) or None,
        "batch_size": options["batch_size"],
        "length": options["eval_length"],
        "allow_same_text": options["allow_same_text"] or None,
        "effort": options["measure"],
        "latency": _set(latency) or None,
    }
    values = {
        "model": model,
        "revision": options["revision"],
        "adapter": _adapters(options),
        "tokenizer": options["tokenizer"],
        **_targets(options["targets"]),
        "requantize": options["requantize"] or None,
        "passes": list(options["passes"]) or None,
        "steps": options["steps"],
        "calibration": _set(calibration) or None,
        "measure": _set(measure) or None,
    }
    return _set(values)


def _adapters(options: Mapping[str, Any]) -> list[Any] | None:
    """The adapters, an empty list where none is wanted, and None where nothing was said."""
    if options["no_adapter"] and options["adapters"]:
        raise InputError("--adapter and --no-adapter say opposite things; give one of them.")
    return [_weighted(text) for text in options["adapters"]] or ([] if options["no_adapter"] else None)


def _targets(names: Sequence[str]) -> dict[str, Any]:
    if len(names) > 1:
        return {"targets": list(names)}
    return {"target": names[0]} if names else {}


def _weighted(text: str) -> str | dict[str, float]:
    """An adapter, or one with its weight behind a colon."""
    source, _, weight = text.rpartition(":")
    try:
        return text if not source or Path(text).exists() else {source: float(weight)}
    except ValueError:
        return text


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
