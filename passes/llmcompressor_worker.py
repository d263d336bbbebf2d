"""Runs llm-compressor; started by `llmcompressor_engine` in the environment that has it.

Reads one request as a line of JSON on standard input, and answers with JSON on standard output:
{"do": "modifiers", "recipe": {...}}: {"calibrates": whether it wants text};
{"do": "schemes", "recipe": {...}, "linears": {name: [out, in]}, "embedding": [name, rows, width]}: {"quantizing":
[{"config": its quantization config, "embedding": whether it takes that too, "groups": {linear: its config group}}]};
{"do": "run", "recipe": {...}, "model": folder, "dtype": ..., "tokens": .npy file or null, "seed": n, "out": folder}:
{"warnings": [...]}. What it refuses is {"refused": {...}}, what breaks {"broke": why}.
Ends when its input does. Imports nothing of llmc, which is not in that environment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

BREAKS = (ValueError, TypeError, RuntimeError, NotImplementedError, KeyError, AttributeError)
NO_PROCESSOR: Any = object()  # our text is tokenized already; where it is given none, it looks for one and fails


class Refused(Exception):  # noqa: N818 -- it is an answer
    """The recipe is not one that can be run; its one argument says why."""


def modifiers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the recipe wants text."""
    return {"calibrates": any(modifier.requires_calibration_data for modifier in build(request["recipe"]))}


def build(recipe: Mapping[str, Any]) -> list[Any]:
    """llm-compressor's own objects for a recipe, in run order.

    Raises:
        Refused: it does not know a modifier or refuses its options, or the recipe quantizes nothing.
    """
    from llmcompressor.modifiers import ModifierFactory
    from llmcompressor.modifiers.quantization import QuantizationMixin
    from llmcompressor.recipe import Recipe
    from pydantic import ValidationError

    ModifierFactory.refresh()
    known = ModifierFactory._main_registry
    for name in (name for stage in recipe.values() for group in stage.values() for name in group):
        if name not in known:
            raise Refused({"unknown": name, "known": sorted(known)})
    try:
        made = Recipe.from_dict(dict(recipe)).modifiers
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused({"option": ".".join(map(str, first["loc"])) or "an option", "why": first["msg"]}) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused({"why": str(error).splitlines()[0]}) from error
    if not any(isinstance(modifier, QuantizationMixin) for modifier in made):
        raise Refused({"nothing": [type(one).__name__ for one in made]})
    return list(made)


def schemes(request: Mapping[str, Any]) -> dict[str, Any]:
    """What each quantizing modifier will make of each linear."""
    quantizing = [modifier for modifier in build(request["recipe"]) if hasattr(modifier, "resolved_config")]
    return {"quantizing": [predict(modifier, request["linears"], request["embedding"]) for modifier in quantizing]}


def predict(modifier: Any, linears: Mapping[str, list[int]], embedding: list[Any]) -> dict[str, Any]:
    """Asked of compressed-tensors itself, on modules without weights."""
    from compressed_tensors.quantization import apply_quantization_config

    config = modifier.resolved_config
    modules = weightless(linears, embedding)
    apply_quantization_config(modules, config.model_copy(update={"kv_cache_scheme": None}), show_progress=False)
    found = {name: getattr(modules.get_submodule(name), "quantization_scheme", None) for name in linears}
    return {
        "config": config.model_dump(mode="json"),
        "embedding": hasattr(modules.get_submodule(embedding[0]), "quantization_scheme"),
        "groups": {name: stored(name, scheme) for name, scheme in found.items() if scheme and scheme.weights},
    }


def weightless(linears: Mapping[str, list[int]], embedding: list[Any]) -> Any:
    """The model's linears and its embedding under their names, on the meta device."""
    import torch
    from torch import nn

    root = nn.Module()
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            name: nn.Linear(width, rows, bias=False) for name, (rows, width) in linears.items()
        }
        modules[embedding[0]] = nn.Embedding(*embedding[1:])
    for name, module in modules.items():
        *path, leaf = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, module)
    return root


def stored(name: str, scheme: Any) -> dict[str, Any]:
    """One linear's config group, as it will stand in the config.json that llm-compressor writes."""
    from compressed_tensors.compressors.format import infer_module_format
    from torch import nn

    stored_as = scheme.format or infer_module_format(nn.Linear, scheme)
    return scheme.model_dump(mode="json") | {"targets": [name], "format": stored_as}


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Let llm-compressor work on the model and save its result."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.logger import logger
    from llmcompressor.pipelines.cache import IntermediatesCache

    warnings: list[str] = []
    logger.add(
        lambda message: warnings.append(message.record["message"]), level="WARNING", filter="llmcompressor.modifiers"
    )
    if not torch.accelerator.is_available():
        # There is no memory to pin, and torch refuses what AWQ asks for unconditionally. It changes no number.
        IntermediatesCache.pin_memory = lambda *_: None  # type: ignore[method-assign]
    torch.manual_seed(request["seed"])
    model = oneshot(
        model=request["model"],
        precision=request["dtype"],
        recipe=json.dumps(request["recipe"]),
        dataset=None if request["tokens"] is None else loader(request["tokens"]),
        processor=NO_PROCESSOR,
    )
    model.save_pretrained(request["out"], save_compressed=True)
    return {"warnings": list(dict.fromkeys(warnings))}


def loader(file: str) -> Any:
    """The calibration windows, one a batch and in their order."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    tokens = torch.from_numpy(np.load(file))
    windows = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in tokens]
    return DataLoader(windows, batch_size=1)  # type: ignore[arg-type]  # a list is a map-style dataset


REQUESTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "modifiers": modifiers,
    "schemes": schemes,
    "run": run,
}


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request is answered with."""
    try:
        return REQUESTS[request["do"]](request)
    except Refused as refusal:
        return {"refused": refusal.args[0]}
    except BREAKS as error:
        return {"broke": (str(error).splitlines() or [type(error).__name__])[0]}


def end_with_input() -> None:
    """End this process when nobody waits for its answer any more."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Answer the one request."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the library prints shall not be taken for the answer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would set this itself, and say so
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    json.dump(answer(request), out)
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
