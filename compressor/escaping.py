"""Text as each medium takes it. Names come out of files, and a name may hold what a medium would obey.

HTML has markupsafe and XML the standard library; the others are here.
"""

from __future__ import annotations

import re

import rich.markup

# Controls, what ends a line elsewhere, and what changes the direction of what follows.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
# What CI systems take for a command in what a step prints: "::error" first in a line, "##[error]" anywhere.
COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#(?:\[|vso\[))")
# What Markdown obeys; an underscore within a word it does not.
MARKS = re.compile(
    r"\\(?=[^\w\s])|\*(?=\S)|(?<=\S)\*|\](?=[(\[:])|<(?=[A-Za-z/!?])|\||~(?=~)|(?<!\w)@(?=\w)"
    r"|(?<![^\W_])_(?=\w)|(?<=\w)_(?![^\W_])|^\s*(?:>|(?:#+|[+-]|=+|-+)(?=\s|$))"
)
CODE = re.compile(r"(?<!`)`[^`]+`(?!`)")


def one_line(text: object) -> str:
    """Text that a terminal or a log shows as one line, and takes for nothing else."""
    shown = UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), str(text))
    return COMMAND.sub(lambda found: rf"{found[1] or ''}\{found[0].lstrip()}", shown)


def rich_text(text: object) -> str:
    """The same for the library Rich, which has a markup of its own."""
    return rich.markup.escape(one_line(text))


def markdown(text: object) -> str:
    """A line of Markdown that shows the text. What stands between backticks is code, as our own sentences have it."""
    line, parts, end = one_line(text), [], 0
    for found in CODE.finditer(line):
        parts += [_marked(line[end : found.start()]), found[0].replace("|", r"\|")]
        end = found.end()
    return "".join([*parts, _marked(line[end:])])


def code(text: object) -> str:
    """Text as code within a line of Markdown."""
    line = one_line(text)
    fence, room = "`" * (_longest_run(line) + 1), " " * (line.startswith("`") or line.endswith("`"))
    return f"{fence}{room}{line}{room}{fence}"


def fenced(text: str, language: str) -> str:
    """Lines as a block of code of Markdown."""
    fence = "`" * max(3, _longest_run(text) + 1)
    lines = "\n".join(map(one_line, text.rstrip("\n").split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def _marked(text: str) -> str:
    escaped = MARKS.sub(lambda found: found[0].replace(found[0].lstrip(), "\\" + found[0].lstrip()), text)
    return escaped.replace("`", r"\`")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
