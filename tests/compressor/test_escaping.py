import io
import re

import pytest
from rich.console import Console

from compressor.cli.progress import ConsoleProgress
from compressor.escaping import code, fenced, markdown, one_line, rich_text
from compressor.ledger import Ledger, StepRecord
from compressor.report.markdown import render
from compressor.report.terminal import show


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c\u2028d", r"a\u202eb\u2066c\u2028d"),
        ("\ud800", r"\ud800"),
        ("::error file=a::b", r"\::error file=a::b"),
        ("  ::set-output name=a::b", r"  \::set-output name=a::b"),
        ("a ##[error]b ##vso[task.complete]", r"a \##[error]b \##vso[task.complete]"),
        ("std::vector, 模型, é, 5 ± 1, ##", "std::vector, 模型, é, 5 ± 1, ##"),
    ],
)
def test_a_line(text, shown):
    assert one_line(text) == shown


def test_rich_shows_the_text_itself():
    written = io.StringIO()
    Console(file=written, width=200).print(rich_text("[red]a[/] [link=x]b \\[bold]\n\x1b[31m"))
    assert written.getvalue() == "[red]a[/] [link=x]b \\[bold]\\n\\x1b[31m\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.mlp.down_proj, 1.2 ± 0.1, -3 a * b", "model.layers.0.mlp.down_proj, 1.2 ± 0.1, -3 a * b"),
        ("`llmc gate --more-samples` measures more: [1, 2]", "`llmc gate --more-samples` measures more: [1, 2]"),
        ("a|b `c|d`", r"a\|b `c\|d`"),
        ("**a** _b_ ~~c~~", r"\*\*a\*\* \_b\_ \~~c\~~"),
        ("[a](http://b) ![c](d) [e]: f", r"[a\](http://b) ![c\](d) [e\]: f"),
        ("<script>x</script> <!-- -->, 1 < 2", r"\<script>x\</script> \<!-- -->, 1 < 2"),
        ("@everyone a@b.org", r"\@everyone a@b.org"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("> a", r"\> a"),
        ("a ` b", r"a \` b"),
        ("a\n## b", r"a\n## b"),
    ],
)
def test_markdown(text, shown):
    assert markdown(text) == shown


def test_code_of_markdown_ends_where_it_should():
    assert code("a") == "`a`"
    assert code("`a``b`") == "``` `a``b` ```"
    assert fenced("a\n```\n::error::b\n", "sh") == "````sh\na\n```\n\\::error::b\n````"


HOSTILE = "x\n\n# H ![p](http://e/p.png) <img src=e> [red]R[/] \x1b[31m|\n::error::E"


@pytest.fixture
def hostile():
    """A ledger whose names are out to be more than names."""
    return Ledger(
        HOSTILE, {"passes": [], "model": HOSTILE}, warnings=[HOSTILE], steps=[StepRecord(HOSTILE, size_bytes=1)]
    )


def test_a_report_in_markdown_has_no_lines_of_a_name(hostile):
    page = render([hostile])
    assert "\x1b" not in page
    assert not re.findall(r"^\s*(::|# H)", page, re.MULTILINE)
    outside_of_code = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    assert "<img" not in outside_of_code.replace(r"\<img", "")
    assert "](http" not in outside_of_code.replace(r"\](http", "")


def test_a_report_in_the_terminal_has_no_lines_of_a_name(hostile):
    written = io.StringIO()
    show([hostile], Console(file=written, width=200))
    assert "\x1b" not in written.getvalue()
    assert "[red]R[/]" in written.getvalue()
    assert not re.findall(r"^\s*::", written.getvalue(), re.MULTILINE)


def test_progress_shows_names_as_they_are(capsys):
    with ConsoleProgress() as progress:
        progress("asking [red]a[/]\n::error::b", 0, 1)
    assert capsys.readouterr().err.splitlines()[0] == r"asking [red]a[/]\n::error::b ..."


def test_an_error_is_one_line(llmc, tmp_path):
    for words in (["inspect", tmp_path / "a\n::error::b\x1b[31m"], ["inspect", "--a\n::error::b"]):
        code, _, err = llmc(*words)
        assert code == 2
        assert "\x1b" not in err
        assert not [line for line in err.splitlines() if line.startswith("::")]
        assert r"a\n::error::b" in err


def test_every_verb_prints_lines(tmp_path):
    from pathlib import Path

    import compressor.cli

    for path in Path(compressor.cli.__file__).parent.glob("*.py"):
        direct = re.findall(r"click\.s?echo\((.*)", path.read_text())
        allowed = {
            "say.py": r"",
            "__init__.py": r'json\.dumps|"Error: "|"Hint:  "',
            "report.py": "render_markdown",
            "completion.py": "script",
        }
        rest = [call for call in direct if not re.search(allowed.get(path.name, "^$"), call)]
        assert not rest, f"{path.name}: {rest}"
