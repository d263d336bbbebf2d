"""Passes and targets by name. Built-in ones arrive by the same entry points as plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import TYPE_CHECKING, Any

from compressor import meant
from compressor.errors import InputError, nearest

if TYPE_CHECKING:
    from compressor.pass_ import Pass
    from compressor.target import Target

PASSES, TARGETS = "llmc.passes", "llmc.targets"
MEANT = {PASSES: meant.PASSES, TARGETS: meant.TARGETS}
TOP_LEVEL_PACKAGES = ("compressor", "passes", "targets", "calibration")


@cache
def names(group: str) -> dict[str, EntryPoint]:
    """Everything registered in an entry-point group, sorted by name; nothing is imported.

    Raises:
        InputError: two distributions register the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise InputError(
                f"{entry.name!r} is registered twice in {group}: by {_owner(other)} and by {_owner(entry)}."
            )
        found[entry.name] = entry
    return found


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass with validated options."""
    return _make(PASSES, "pass", name, options)


def make_target(name: str, options: Mapping[str, Any]) -> Target:
    """A target with validated options."""
    return _make(TARGETS, "target", name, options)


def load(group: str, kind: str, name: str) -> Any:
    """The class registered under `name`.

    Raises:
        InputError: nothing has that name; the message gives the nearest one.
    """
    check_name(group, kind, name)
    return names(group)[name].load()


def check_name(group: str, kind: str, name: str) -> None:
    """See that something is registered under `name`, without importing it.

    Raises:
        InputError: nothing has that name; the message gives the nearest one.
    """
    known = names(group)
    if name not in known:
        raise InputError(
            f"Unknown {kind} {name!r}; {nearest(name, known, MEANT[group].get(name.lower(), ()))}",
            f"`llmc {group.removeprefix('llmc.')}` lists what there is.",
        )


def option_names(name: str) -> list[str]:
    """Names of the options of a pass."""
    return [field["name"] for field in load(PASSES, "pass", name).describe_options()]


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name:key=value,key=value`. Values are YAML scalars; `a+b` is a list.

    Raises:
        InputError: an option is not of the form key=value.
    """
    name, _, rest = text.partition(":")
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} in {text!r} is not of the form option=value.")
        options[key.strip()] = value.split("+") if "+" in value else _scalar(value)
    return name.strip(), options


def _scalar(text: str) -> Any:
    import yaml

    if ":" in text:  # YAML takes 2:4 for a number to the base of 60
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # such as the pattern *.down_proj, which looks like a reference
        return text


def check_installation() -> None:
    """Refuse to run where another distribution owns one of our top-level package names.

    Raises:
        InputError: naming the other distribution.
    """
    for distribution in distributions():
        taken = _top_level(distribution).intersection(TOP_LEVEL_PACKAGES)
        if taken and distribution.metadata["Name"] != "llmc-compiler":
            raise InputError(
                f"The distribution {distribution.metadata['Name']} also installs a package named {min(taken)!r}.",
                "Install llmc-compiler in an environment without it.",
            )


def _top_level(distribution: Distribution) -> set[str]:
    """What a distribution installs, by its own lists; `packages_distributions` takes a second to look at each file."""
    text = distribution.read_text("top_level.txt") or distribution.read_text("RECORD") or ""
    paths = (line.partition(",")[0] for line in text.splitlines())
    return {path.partition("/")[0].removesuffix(".py").strip() for path in paths}


def _make(group: str, kind: str, name: str, options: Mapping[str, Any]) -> Any:
    from dataclasses import fields

    from pydantic import TypeAdapter, ValidationError

    cls = load(group, kind, name)
    known = [field.name for field in fields(cls)]
    for key in options:
        if key not in known:
            raise InputError(f"{kind.capitalize()} {name!r} has no option {key!r}; {nearest(key, known)}")
    wrapped = {
        key: (value,) if _is_tuple(cls, key) and not isinstance(value, list | tuple) else value
        for key, value in options.items()
    }
    try:
        return TypeAdapter(cls).validate_python(wrapped)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{kind.capitalize()} {name!r}: {option}={first['input']!r} is not allowed. {first['msg']}."
        ) from error


def _is_tuple(cls: Any, option: str) -> bool:
    """Whether an option takes several values, so that one may be given without a list."""
    from typing import get_origin, get_type_hints

    return get_origin(get_type_hints(cls).get(option)) is tuple


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist else 'unknown'} ({entry.value})"
