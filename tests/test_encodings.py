"""Every file of text is read and written as UTF-8, whatever the machine's own encoding is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compressor", "passes", "targets", "calibration")
POSITION = {"read_text": 0, "write_text": 1}  # of the encoding


def unsaid(source: str) -> list[int]:
    """Lines of calls that read or write text and do not say how it is encoded."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _is_text(call) and not any(one.arg == "encoding" for one in call.keywords)]


def _is_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if name in POSITION:
        return isinstance(call.func, ast.Attribute) and len(call.args) <= POSITION[name]
    if name == "NamedTemporaryFile" or (name == "open" and isinstance(call.func, ast.Name)):
        return not _is_binary(call.args[1:2] if name == "open" else call.args[:1], "w+b" if name != "open" else "r")
    is_path = name == "open" and isinstance(call.func, ast.Attribute) and _opens_a_path(call)
    return is_path and not _is_binary(call.args[:1], "r")


def _opens_a_path(call: ast.Call) -> bool:
    """Whether an `x.open(...)` looks like a path's: its mode is one of a file's."""
    modes = [one.value for one in call.args[:1] if isinstance(one, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) <= set("rwxabt+") for mode in modes) or any(
        one.arg == "newline" for one in call.keywords
    )


def _is_binary(mode: list[ast.expr], default: str) -> bool:
    given = [one.value for one in mode if isinstance(one, ast.Constant)]
    return "b" in str(given[0] if given else default)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_read_and_write_says_utf8(package):
    found = {path: unsaid(path.read_text(encoding="utf-8")) for path in sorted((ROOT / package).rglob("*.py"))}
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("p.read_text()", 1), ("p.write_text(x)", 1), ("open(p)", 1), ("p.open('w')", 1), ("p.open(newline='')", 1),
        ("p.read_text('utf-8')", 0), ("p.write_text(x, encoding='utf-8')", 0), ("open(p, 'rb')", 0),
        ("p.open('wb')", 0), ("target.open(artifact)", 0), ("session.open()", 0),
    ],
)  # fmt: skip
def test_what_is_told(source, count):
    assert len(unsaid(source)) == count
