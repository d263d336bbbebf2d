"""What a recipe will do to a model, and every reason why it cannot, before any work starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor import layout
from compressor.adapter import CONFIG_FILE, holds_adapter
from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.convert import Check, Outline
from compressor.errors import InputError
from compressor.pass_ import Need, Pass
from compressor.quantized import Scheme
from compressor.recipe import Recipe
from compressor.target import Target

MERGED_ONLY = (
    "The adapter was merged and nothing else was done: {} holds floats, and there was no text to calibrate its default "
    "passes on (--calibration)."
)


@dataclass(frozen=True)
class Plan:
    """A recipe that fits its model.

    Attributes:
        schemes: of the linears after all passes.
        notes: what was decided, for the ledger.
    """

    recipe: Recipe
    passes: list[Pass]
    target: Target
    schemes: Mapping[str, Scheme]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, checkpoint: Checkpoint, allow_pickle: bool) -> Plan:
        """The plan for a checkpoint.

        Raises:
            InputError: a pass's options do not fit the model, or the target cannot take the outcome.
        """
        check_adapter_beside(recipe, checkpoint.root)
        plan = cls.outlined(recipe, checkpoint, allow_pickle)
        check_values(checkpoint, plan.passes, plan.schemes, plan.target)
        check_tokenizer(checkpoint, plan.target)
        original = original_of(checkpoint, plan.passes)
        for one in plan.passes:
            one.check(original)
        return plan

    @classmethod
    def outlined(cls, recipe: Recipe, model: Checkpoint | Outline, allow_pickle: bool) -> Plan:
        """The plan for a model as far as its headers tell.

        Raises:
            InputError: as above.
        """
        notes: tuple[str, ...] = (MERGED_ONLY.format(recipe.target_name),) if recipe.merges_alone else ()
        asked, recipe = recipe, recipe.for_model(model.architecture, model.schemes)
        notes += tuple(_adapted(asked, recipe))
        recipe = recipe.for_context(model.architecture.max_positions)
        return cls(recipe, *check_recipe(recipe, model, allow_pickle), notes)

    @property
    def calibrated(self) -> list[str]:
        """The passes that need calibration text."""
        return [one.name for one in self.passes if Need.CALIBRATION in one.needs]

    @property
    def choosing(self) -> list[str]:
        """The passes that choose schemes while they run, among those which `schemes` shows."""
        return [one.name for one in self.passes if one.chooses_schemes]


def _adapted(asked: Recipe, fitted: Recipe) -> Iterator[str]:
    """A note on each option of a pass that nobody gave, and whose default does not fit the model."""
    for before, now in zip(asked.build_passes(), fitted.build_passes(), strict=False):  # none where no preset is for it
        options = before.options()
        for name, value in now.options().items():
            if options[name] != value:
                default = options[name]
                yield f"{now.name} runs with {name}={value}: its default of {default} does not fit the model's widths"


def check_of(recipes: Sequence[Recipe], allow_pickle: bool) -> Check:
    """What refuses a model before it is converted, if one of the recipes does not fit it."""

    def check(outline: Outline) -> None:
        for recipe in recipes:
            check_recipe(recipe.for_model(outline.architecture, outline.schemes), outline, allow_pickle)

    return check


def check_adapter_beside(recipe: Recipe, root: Path) -> None:
    """Refuse a model with an adapter in its folder, which transformers applies on opening it, unless the recipe says.

    Args:
        root: the folder that the model was opened in, which may be one that it was converted to.

    Raises:
        InputError: there is one.
    """
    said = recipe.adapter is not None or any(one.comes_first for one in recipe.build_passes())
    folders = (Path(recipe.model).expanduser(), root)
    beside = next((folder for folder in folders if (folder / "config.json").is_file() and holds_adapter(folder)), None)
    if beside is not None and not said:
        raise InputError(
            f"{beside} holds a model and an adapter ({CONFIG_FILE}), which transformers applies on opening it.",
            f"Give --adapter {beside} to merge it, or --no-adapter to leave it out.",
        )


def original_of(checkpoint: Checkpoint, passes: Sequence[Pass]) -> Checkpoint:
    """What every row of a run is compared with: the checkpoint, or what a pass makes of it that brings an adapter."""
    for one in passes:
        checkpoint = one.original(checkpoint)
    return checkpoint


def check_gate(recipe: Recipe) -> None:
    """See that what the recipe's gate needs will be measured.

    Raises:
        InputError: it will not be.
    """
    limits, measure = recipe.gate, recipe.measure
    if limits is None:
        return
    if not limits.asked:
        raise InputError("The recipe's gate has no limit.", "Give max_perplexity_increase, for example.")
    if measure.effort == "none":
        raise InputError("The recipe has a gate, and measuring is switched off.", "Leave out --measure none.")
    if limits.split(has_tasks=bool(measure.tasks))[0].asked and measure.texts is None:
        raise InputError(
            "The recipe has a gate on accuracy, and no evaluation text to measure it on.", "Give --eval TEXT."
        )
    target = recipe.build_target()
    reason = target.why_not_run()
    if limits.max_latency_increase is not None and reason is not None:
        raise InputError(f"The gate has a limit on latency, and {target.name} cannot be run here: {reason}.")


def check_recipe(
    recipe: Recipe, model: Checkpoint | Outline, allow_pickle: bool
) -> tuple[list[Pass], Target, Mapping[str, Scheme]]:
    """A recipe's passes and target, and what the model's linears will be after all passes. Headers are enough for it.

    Raises:
        InputError: a pass's options do not fit the model, or the target cannot take the outcome.
    """
    passes, target = recipe.build_passes(), recipe.build_target()
    check_pickles(passes, allow_pickle)
    return passes, target, check_plan(model, passes, target)


def check_plan(model: Checkpoint | Outline, passes: list[Pass], target: Target) -> Mapping[str, Scheme]:
    """What the model's linears will be after all passes.

    Raises:
        InputError: a pass's options do not fit the model, or the target cannot take the outcome.
    """
    schemes: Mapping[str, Scheme] = model.schemes
    cache_scales = model.kv_cache
    late = next((one.name for one in passes[1:] if one.comes_first), None)
    if late is not None:
        raise InputError(f"{late} comes first: what it brings fits the model as it was trained, and once.")
    check_zeros(passes)
    check_unrounded(model, passes)
    architecture = model.architecture
    for one in passes:
        schemes = one.plan(architecture, schemes)
        cache_scales = one.cache_scales(architecture, cache_scales)
        architecture = one.reshaped(architecture)
    layout.check_together(schemes, cache_scales)
    embedding = architecture.embedding
    linears = {name: scheme for name, scheme in schemes.items() if name != embedding}
    fitting = target.extension_problems(linears) or target.problems(architecture, linears)
    problems = list(filter(None, [target.why_not_made(), *fitting]))
    if embedding in schemes and not target.holds_quantized_embedding:
        problems.append("It holds no quantized embedding; leave out the pass embeddings, or take the target hf.")
    elif embedding in schemes:
        problems += target.embedding_problems(architecture, schemes[embedding])
    if cache_scales:
        problems += target.cache_problems(architecture, linears)
    if problems:
        raise InputError(f"{target.name} cannot take this: " + " ".join(problems), _remedy(model))
    return schemes


def check_zeros(passes: list[Pass]) -> None:
    """Refuse passes that undo what one before them did.

    Raises:
        InputError: there is one.
    """
    sparse: Pass | None = None
    for one in passes:
        if sparse is not None and one.zeros == "fills":
            raise InputError(
                f"{one.name} fills the zeros that {sparse.name} makes.",
                f"Put {one.name} first, or leave out one of both.",
            )
        sparse = one if one.zeros == "makes" else sparse


def check_unrounded(model: Checkpoint | Outline, passes: list[Pass]) -> None:
    """Refuse passes that need the weights of linears from before their rounding, and would not find them.

    Raises:
        InputError: there is one.
    """
    architecture, schemes = model.architecture, dict(model.schemes)
    rounding: list[Pass] = []
    for one in passes:
        if Need.UNROUNDED in one.needs:
            if has_rounded_linears(model.architecture, model.schemes):
                raise InputError(
                    f"{one.name} needs the weights from before their rounding, and the model came rounded.",
                    "Start from the float checkpoint.",
                )
            moved = next((other.name for other in rounding if other.changes_floats), None)
            if moved is not None:
                raise InputError(
                    f"{moved} changes weights beside rounding them, so that {one.name} cannot tell what rounding lost.",
                    "gptq, rtn and mixed work; awq does with round=false before one of them.",
                )
        schemes = one.plan(architecture, schemes)
        if has_rounded_linears(architecture, schemes):
            rounding.append(one)
        architecture = one.reshaped(architecture)


def has_rounded_linears(architecture: Architecture, schemes: Mapping[str, Scheme]) -> bool:
    """Whether linears of the decoder are not in floats any more."""
    return any(name in schemes for name in architecture.linears())


def check_pickles(passes: list[Pass], allowed: bool) -> None:
    """Refuse pickle files that passes would open.

    Raises:
        InputError: there is one, and the run does not allow it.
    """
    first = next((path for one in passes for path in one.pickles), None)
    if first is not None and not allowed:
        raise InputError(
            f"{first} is a pickle, which can run code when opened.", "Pass --allow-pickle if you trust its source."
        )


def check_values(checkpoint: Checkpoint, passes: list[Pass], schemes: Mapping[str, Scheme], target: Target) -> None:
    """See that the target can hold the numbers that no pass will change; `schemes` are those after all passes.

    Raises:
        InputError: it cannot.
    """
    rounded = {f"{layer}.weight" for layer in schemes}
    known = not any(one.changes_floats for one in passes)
    floats = [name for name in checkpoint.architecture.tensor_shapes() if known and name not in rounded]
    problems = list(target.value_problems(checkpoint, floats))
    if problems:
        raise InputError(f"{target.name} cannot hold this: " + " ".join(problems), _remedy(checkpoint))


def check_tokenizer(checkpoint: Checkpoint, target: Target) -> None:
    """See that the target's runtime will make the same tokens of text as the model's own tokenizer.

    Raises:
        InputError: it will not.
    """
    problems = target.tokenizer_problems(checkpoint.root, checkpoint.architecture.vocab_size)
    if problems:
        raise InputError(f"{target.name} cannot take this tokenizer: " + " ".join(problems))


def _remedy(model: Checkpoint | Outline) -> str | None:
    """What helps where a model that is quantized already does not fit."""
    if not model.schemes and not model.kv_cache:
        return None
    return "The model is quantized already; --requantize dequantizes it first, and rounds its weights a second time."
