"""Which target takes which family? Prints the table of docs/families.md, as the targets themselves answer.

Each family has the shape that transformers gives it by default, and is quantized as the target's own preset does it.
Targets whose package is not installed are left out.

    python benchmarks/families.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compressor import registry
from compressor.architecture import Architecture, resolve
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.pass_ import Pass
from compressor.quantized import Scheme
from compressor.target import Target

NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "phi3": "Phi-3, Phi-4",
    "gpt2": "GPT-2",
}


def preset(target: Target) -> list[Pass]:
    """The passes that a target runs where none are named."""
    return [registry.make_pass(*registry.parse_spec(spec)) for spec in target.preset]


def problems(architecture: Architecture, target: Target) -> list[str]:
    """What the target, or a pass of its preset, says of a model of this shape, quantized by that preset."""
    schemes: Mapping[str, Scheme] = {}
    try:
        for one in preset(target):
            schemes = one.plan(architecture, schemes)
    except InputError as error:
        return [str(error)]
    return target.problems(architecture, schemes)


def answers() -> dict[str, dict[str, list[str]]]:
    """Problems by target and family."""
    shapes = {family: resolve({"model_type": family}) for family in FAMILIES}
    found = {}
    for name in registry.names(registry.TARGETS):
        target = registry.make_target(name, {})
        row = {family: problems(shape, target) for family, shape in shapes.items()}
        if not any("is missing; pip install" in reason for reasons in row.values() for reason in reasons):
            found[name] = row
    return found


def table(found: Mapping[str, Mapping[str, list[str]]]) -> Iterable[str]:
    """A row a target, a column a family."""
    yield "| target | " + " | ".join(NAMES[family] for family in FAMILIES) + " |"
    yield "|---|" + ":-:|" * len(FAMILIES)
    for name, row in found.items():
        yield f"| `{name}` | " + " | ".join("no" if row[family] else "yes" for family in FAMILIES) + " |"


def reasons(found: Mapping[str, Mapping[str, list[str]]]) -> Iterable[str]:
    """Every refusal once, with the targets and families that it is of."""
    seen: dict[tuple[str, str], list[str]] = {}
    for name, row in found.items():
        for family, sentences in row.items():
            if sentences:
                seen.setdefault((sentences[0], NAMES[family]), []).append(f"`{name}`")
    for (sentence, family), names in seen.items():
        yield f"- {family}, {', '.join(names)}: {sentence}"


def document() -> str:
    """The table, and why not."""
    found = answers()
    return "\n".join([*table(found), "", *reasons(found)])


if __name__ == "__main__":
    print(document())
