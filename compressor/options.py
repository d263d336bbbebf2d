"""Options of passes and targets: the fields of a frozen dataclass, from which every spelling and listing comes."""

from __future__ import annotations

from dataclasses import asdict, field, fields
from typing import Any, ClassVar


def option(default: Any, help: str) -> Any:
    """A dataclass field that is an option, with the text that listings show."""
    return field(default=default, metadata={"help": help})


class Configurable:
    """Base of things that have a name and options. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """Every option with its value, defaults written out."""
        return asdict(self)  # type: ignore[call-overload]

    def spelled(self) -> str:
        """The command-line spelling that makes this very thing; defaults are left out."""
        changed = [
            f"{f.name}={_spell(getattr(self, f.name))}" for f in _fields(self) if getattr(self, f.name) != f.default
        ]
        return self.name + (":" + ",".join(changed) if changed else "")

    @classmethod
    def describe_options(cls) -> list[dict[str, Any]]:
        """Name, type, default and help of every option, for listings."""
        return [
            {"name": f.name, "type": str(f.type), "default": f.default, "help": f.metadata["help"]}
            for f in _fields(cls)
        ]


def _fields(configurable: Any) -> Any:
    return fields(configurable)


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
