"""The JSON Schema of `ledger.json`, made from the types that write it and from what their docstrings say.

python -m compressor.ledger_schema > docs/ledger.schema.json
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from pydantic import TypeAdapter

from compressor.files import json_text
from compressor.ledger import SCHEMA, Ledger

FLOAT = {"description": "A number, or the name of a float that is none.",
         "anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}  # fmt: skip


def schema() -> dict[str, Any]:
    """The schema, draft 2020-12."""
    made = TypeAdapter(Ledger).json_schema(mode="serialization")
    types = {name: _object(one) for name, one in made.pop("$defs").items()}
    ledger = _object(made)
    ledger["properties"]["schema"] = {"const": SCHEMA}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"llmc ledger, schema {SCHEMA}"}
    return head | ledger | {"$defs": types | {"Float": FLOAT}}


def _object(made: dict[str, Any]) -> dict[str, Any]:
    """One type: every field is written, and described as in the docstring's `Attributes`."""
    text, _, attributes = inspect.cleandoc(made["description"]).partition("\n\nAttributes:\n")
    said = dict(re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", attributes, flags=re.MULTILINE))
    properties = {name: _value(one) for name, one in made["properties"].items()}
    for name, description in said.items():
        properties[name] = {"description": re.sub(r"\s+", " ", description)} | properties[name]
    return {"description": text, "type": "object", "properties": properties, "required": list(properties)}


def _value(made: Any) -> Any:
    """A field's type, without the titles that only repeat names, and with floats as we write them."""
    if isinstance(made, list):
        return [_value(item) for item in made]
    if not isinstance(made, dict):
        return made
    if made.get("type") == "number":
        return {"$ref": "#/$defs/Float"}
    return {key: _value(item) for key, item in made.items() if key not in ("title", "default")}


if __name__ == "__main__":
    sys.stdout.write(json_text(schema()))
