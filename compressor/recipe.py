"""The recipe: what a run does, as YAML. Unknown keys are errors that name the line and the nearest key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from compressor import registry, yaml_text
from compressor.architecture import Architecture
from compressor.errors import InputError, listed, nearest
from compressor.families import EMBEDDINGS, HEAD
from compressor.gate.limits import Limits
from compressor.measure import BATCH_SIZE
from compressor.yaml_file import read_yaml

if TYPE_CHECKING:
    from compressor.pass_ import Pass
    from compressor.quantized import Scheme
    from compressor.target import Target

MERGE = "lora-merge"  # the pass that an adapter stands for
MIXED = "mixed"  # the pass that takes an average number of bits
WIDTHS = (4, 8)
TARGET, TARGETS = "target", "targets"  # keys: of one, and of a list that stands for as many recipes
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a path, or an id that is none


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def is_default_length(self) -> bool:
        """Whether nobody asked for the length of windows; then it adapts to the model."""
        return "length" not in self.model_fields_set


class CalibrationSection(_Section):
    """Text that passes calibrate on: `samples` windows of `length` tokens, drawn with `seed`.

    Attributes:
        strict: refuse text that the auditor does not find all right.
    """

    texts: Place
    samples: int = Field(128, ge=1)
    length: int = Field(512, ge=8)
    seed: int = 0
    strict: bool = False

    @property
    def sized(self) -> bool:
        """Whether the number of windows or their length was asked for; defaults may adapt to the text."""
        return bool(self.model_fields_set & {"samples", "length"})


class LatencySection(_Section):
    """The workload that latency is measured with.

    Attributes:
        repeats: at most; where nobody asked for a number, fewer are enough as soon as the intervals are narrow.
    """

    batch: list[int] = [1]
    prompt: int = Field(128, ge=1)
    output: int = Field(32, ge=2)
    repeats: int = Field(5, ge=2)

    @property
    def least(self) -> int | None:
        """Repeats after which timing may end early; None where the number was asked for."""
        return None if "repeats" in self.model_fields_set else 3


class MeasureSection(_Section):
    """Evaluation text, tasks and the workload. `effort`: quick takes at most 24 windows, full all of the text.

    Attributes:
        tasks: files that the original and the artifact are asked; see `compressor.tasks`.
        batch_size: of what they are asked at once.
        allow_same_text: judge by the very text that passes calibrate on, which flatters what they make.
    """

    texts: Place | None = None
    allow_same_text: bool = False
    tasks: list[Place] = []
    batch_size: int = Field(BATCH_SIZE, ge=1)
    length: int = Field(512, ge=8)
    effort: Literal["quick", "full", "none"] = "quick"
    latency: LatencySection = LatencySection()

    @property
    def is_judged(self) -> bool:
        """Whether there is evaluation text, and it is used."""
        return self.texts is not None and self.effort != "none"


class Recipe(_Section):
    """One run: model, passes in their order, target, and what is measured."""

    model: Place
    revision: str | None = None  # branch, tag or commit of a model on the hub
    adapter: dict[Place, float] | None = None  # folders or hub ids, and what each is multiplied by; [] says: none
    tokenizer: Literal["base", "adapter"] | None = None  # None: the adapter's, where it brings one
    calibration: CalibrationSection | None = None
    requantize: bool = False  # take a quantized model for the float model that it stands for
    passes: list[str | dict[str, Any]] | None = None  # None: what the target suggests for a float model
    target: str | dict[str, Any]
    measure: MeasureSection = MeasureSection()
    gate: Limits | None = None  # judged at the end, where there is one
    steps: Literal["keep", "last", "none"] = "keep"  # which folders of passes stay when the run is whole
    seed: int = 0

    @field_validator("adapter", mode="before")
    @classmethod
    def _weigh_adapters(cls, value: Any) -> Any:
        """`./lora`, `[./style, {./facts: 0.5}]` and `{./style: 1, ./facts: 0.5}` are the ways to write it."""
        if not isinstance(value, str | list):
            return value
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str | dict) for entry in entries):
            raise ValueError("An adapter is a folder or a hub id")
        weighted = [entry if isinstance(entry, dict) else {entry: 1.0} for entry in entries]
        if not all(isinstance(source, str) for entry in weighted for source in entry):
            raise ValueError("An adapter is a folder or a hub id")
        merged = {source: weight for entry in weighted for source, weight in entry.items()}
        if len(merged) < sum(map(len, weighted)):
            raise ValueError("An adapter is given twice; give it once, with the sum of its weights")
        return merged

    @property
    def source(self) -> str:
        """The model as it is opened, with its revision.

        Raises:
            InputError: it is on this disk, where there are no revisions.
        """
        if self.revision is None:
            return self.model
        if Path(self.model).expanduser().exists():
            raise InputError(f"{self.model} is on this disk and has no revisions.", "Leave out --revision.")
        return f"{self.model}@{self.revision}"

    @property
    def target_name(self) -> str:
        return _named(self.target)[0]

    def check_names(self) -> None:
        """See that the target and the passes are known, without importing them.

        Raises:
            InputError: one is not.
        """
        registry.check_name(registry.TARGETS, "target", self.target_name)
        for entry in self.passes or []:
            registry.check_name(registry.PASSES, "pass", _named(entry)[0])

    def build_target(self) -> Target:
        return registry.make_target(*_named(self.target))

    def build_passes(self) -> list[Pass]:
        """The passes in run order: adapters are merged first, then the target's preset when the recipe names none."""
        entries = self.build_target().preset if self.passes is None else self.passes
        return [registry.make_pass(*_named(entry)) for entry in [*self._merging(), *entries]]

    def _merging(self) -> list[dict[str, Any]]:
        if not self.adapter:
            if self.tokenizer is not None:
                raise InputError(
                    "tokenizer says whose of two is taken, and there is no adapter.",
                    "Give --adapter too; among the passes it is lora-merge:tokenizer=base.",
                )
            return []
        weights = [] if set(self.adapter.values()) == {1.0} else list(self.adapter.values())
        chosen = {} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        return [{MERGE: {"adapter": list(self.adapter), "weights": weights, **chosen}}]

    def for_model(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> Recipe:
        """The recipe for a model: without the target's preset where that is not for it, and with defaults that fit.

        A preset is for models with float layers only, and for merging alone there is none.
        """
        quantized = bool(schemes.keys() - EMBEDDINGS - {HEAD})
        if self.passes is None and (quantized or self.merges_alone):
            return self.model_copy(update={"passes": []})
        entries = self.build_target().preset if self.passes is None else self.passes
        fitted = list(_fitted(entries, architecture))
        return self if fitted == list(entries) else self.model_copy(update={"passes": fitted})

    @property
    def merges_alone(self) -> bool:
        """Whether merging adapters is all there is to do: the target holds floats, and its preset has no text to
        calibrate on.
        """
        from compressor.pass_ import Need

        target = self.build_target()
        if not self.adapter or self.passes is not None or self.calibration is not None or not target.holds_floats:
            return False
        return any(Need.CALIBRATION in registry.make_pass(*_named(entry)).needs for entry in target.preset)

    def for_context(self, limit: int) -> Recipe:
        """The recipe for a model of so many positions: default lengths that are longer become as long; others stay."""
        calibration, measure = self.calibration, self.measure
        fitted = {
            "calibration": calibration and _defaults(calibration, length=min(calibration.length, limit)),
            "measure": _defaults(measure, length=min(measure.length, limit), latency=_shorter(measure.latency, limit)),
        }
        return self.model_copy(update=fitted)

    def with_bits(self, bits: float) -> Recipe:
        """The recipe with the preset of its target, with other bits; see `preset_with_bits`."""
        return self.model_copy(update={"passes": preset_with_bits(self.build_target(), bits)})

    def with_target_options(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe with these options of its target, in the place of those that it has."""
        name, given = _named(self.target)
        return self.model_copy(update={"target": {name: {**given, **options}}})

    def with_samples(self, windows: int) -> Recipe:
        """The recipe with the number of calibration windows that a default came to."""
        assert self.calibration is not None
        return self.model_copy(update={"calibration": self.calibration.model_copy(update={"samples": windows})})

    def written_out(self) -> dict[str, Any]:
        """The recipe with every default in its place, ready to be run again."""
        target = self.build_target()
        merging = {"adapter", "tokenizer"} if self.adapter else {"tokenizer"}  # they stand among the passes
        plain = self.model_dump(mode="json", exclude=merging)
        plain["passes"] = [{one.name: _plain(one.options())} for one in self.build_passes()]
        plain["target"] = {target.name: _plain(target.options())}
        return plain


def _fitted(
    entries: Iterable[str | Mapping[str, Any]], architecture: Architecture
) -> Iterator[str | Mapping[str, Any]]:
    """Passes of a recipe, with other values for options that nobody gave and whose defaults do not fit the model."""
    for entry in entries:
        name, given = _named(entry)
        one = registry.make_pass(name, given)
        changed = one.fitting_defaults(given, architecture)
        yield {name: {**given, **changed}} if changed else entry
        architecture = one.reshaped(architecture)


def _defaults(section: Any, **values: Any) -> Any:
    """A section with other values for the keys that nobody asked for; they still count as not asked for."""
    asked = section.model_fields_set
    changed = {key: value for key, value in values.items() if key not in asked or isinstance(value, BaseModel)}
    return section.model_construct(_fields_set=asked, **(dict(section) | changed))


def _shorter(latency: LatencySection, limit: int) -> LatencySection:
    """The workload with a default prompt that leaves room for what is generated."""
    room = limit - latency.output
    return _defaults(latency, prompt=min(latency.prompt, room)) if room > 0 else latency


def preset_with_bits(target: Target, bits: float) -> list[dict[str, Any]]:
    """The target's preset with other bits: 4 and 8 are the width of all integers, anything else is an average.

    Raises:
        InputError: the preset has no pass whose bits can be changed.
    """
    entries = [_named(entry) for entry in target.preset]
    rounding = [name for name, _ in entries if "bits" in registry.option_names(name)]
    if not rounding:
        raise InputError(f"The preset of {target.name} has no pass with bits to change.", "Name the pass with --pass.")
    return [{name: options} if name != rounding[-1] else _with_bits(name, options, bits) for name, options in entries]


def _with_bits(name: str, options: dict[str, Any], bits: float) -> dict[str, Any]:
    if bits in WIDTHS:
        return {name: options | {"bits": int(bits)}}
    known = registry.option_names(MIXED)
    return {MIXED: {key: value for key, value in options.items() if key in known} | {"bits": bits}}


def load_recipes(path: Path, overrides: Mapping[str, Any]) -> list[Recipe]:
    """Read a recipe file, one recipe a target; `overrides` (from the command line) win, section by section.

    Raises:
        InputError: unreadable file, unknown key (with its line and the nearest known key) or bad value.
    """
    values, text = read_yaml(path, "The recipe")
    node = yaml_text.compose(text)
    if not isinstance(values, dict):
        raise InputError(f"The recipe {path} is not a mapping of keys to values.")
    if overrides.keys() & {TARGET, TARGETS}:
        values = {key: value for key, value in values.items() if key not in (TARGET, TARGETS)}
    return make_recipes(_merge(values, overrides), where=_Lines(path, node))


def make_recipes(values: Mapping[str, Any], where: _Lines | None = None) -> list[Recipe]:
    """Validated recipes that are equal but for the target: one for `target`, or one for each of `targets`.

    Raises:
        InputError: the first thing that is wrong, in one sentence.
    """
    if TARGETS not in values:
        return [make_recipe(values, where)]
    place, targets = f"{where.of([TARGETS])}: " if where else "", values[TARGETS]
    if TARGET in values:
        raise InputError(f"{place}the recipe has both 'target' and 'targets'; give one of them.")
    if not isinstance(targets, list) or not targets:
        raise InputError(f"{place}targets = {targets!r} is not a list of targets.")
    common = {key: value for key, value in values.items() if key != TARGETS}
    recipes = [make_recipe({**common, TARGET: target}, where) for target in targets]
    names = [recipe.target_name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{place}the target {twice} is given twice, and its artifact has one folder.", "Run it apart.")
    return recipes


def make_recipe(values: Mapping[str, Any], where: _Lines | None = None) -> Recipe:
    """A validated recipe.

    Raises:
        InputError: the first thing that is wrong, in one sentence.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [part for part in first["loc"] if isinstance(part, str) and part not in ("str", "dict[str,any]")]
        place = f"{where.of(keys)}: " if where else ""
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"{place}unknown key {keys[-1]!r}; {nearest(keys[-1], _keys_of_section(keys[:-1]))}"
            ) from error
        if first["type"] == "model_type":
            raise InputError(
                f"{place}{'.'.join(keys)} = {first['input']!r} is no section; {listed(_keys_of_section(keys))}."
            ) from error
        if first["type"] == "missing":
            raise InputError(f"{place}the recipe needs {'.'.join(keys)!r}.") from error
        raise InputError(f"{place}{'.'.join(keys)} = {first['input']!r} is not allowed. {first['msg']}.") from error


class _Lines:
    """Finds the line of a key in a YAML document."""

    def __init__(self, path: Path, node: Any) -> None:
        self._path, self._node = path, node

    def of(self, keys: list[str]) -> str:
        node, line = self._node, 1
        for key in keys:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            match = next(((k, v) for k, v in pairs if k.value == key), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        return f"{self._path} line {line}"


def _keys_of_section(path: list[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in path:
        annotation = section.model_fields[key].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(section.model_fields)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _named(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of a pass or target, written as `gptq:bits=4` or as `{gptq: {bits: 4}}`."""
    if isinstance(entry, str):
        return registry.parse_spec(entry)
    if len(entry) != 1:
        raise InputError(
            f"A list entry names one pass; this one has {len(entry)} keys: {', '.join(map(str, entry))}.",
            "Start each pass with its own dash.",
        )
    ((name, options),) = entry.items()
    if not isinstance(options or {}, Mapping):
        raise InputError(f"The options of {name} are {options!r}; write them as keys and values.")
    return name, dict(options or {})


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
