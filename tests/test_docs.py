"""The documents say what is so: figures come from kept results, links lead somewhere, names exist."""

import re
from pathlib import Path

import pytest
import yaml

from compressor import registry
from compressor.cli import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "use").glob("*.md"))]
CHINESE = {page: ROOT / "docs" / page.name for page in sorted((ROOT / "docs" / "zh").glob("*.md"))}
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
DOCUMENTS = [*READMES, ROOT / "CONTRIBUTING.md", *PAGES, *CHINESE]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_figure_of_the_readme_is_in_the_kept_results(readme):
    results = "".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    figures = re.findall(r"[\d.]+ ± [\d.]+%?|[\d.]+ MiB", readme.read_text())
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in results] == []


def names_and_figures(text: str) -> set[str]:
    """What a translation leaves as it is: names in code, figures, and commands without their comments."""
    prose = re.sub(r"\]\([^)]*\)", "]", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    prose = " ".join(prose.split())
    blocks = re.findall(r"^```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = {re.split(r"\s+# ", line)[0].strip() for block in blocks for line in block.splitlines()}
    return commands.union(re.findall(r"`([^`]+)`", prose), re.findall(r"\d+(?:[.,]\d+)*", prose))


@pytest.mark.parametrize(("chinese", "english"), CHINESE.items(), ids=lambda path: path.name)
def test_a_chinese_page_has_no_name_figure_or_command_that_the_english_one_lacks(chinese, english):
    text = chinese.read_text()
    assert f"({Path('..') / english.name})" in text.partition("\n## ")[0]
    assert sorted(names_and_figures(text) - names_and_figures(english.read_text())) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_readme_names_every_verb_target_and_pass(readme):
    text = readme.read_text()
    for name in [*VERBS, *registry.names(registry.TARGETS), *registry.names(registry.PASSES)]:
        assert name in text


def test_passes_targets_and_dependencies_are_documented():
    for page in (ROOT / "docs" / "targets.md", ROOT / "docs" / "zh" / "targets.md"):
        assert [name for name in registry.names(registry.TARGETS) if f"| `{name}` |" not in page.read_text()] == []
    for page in (ROOT / "docs" / "passes.md", ROOT / "docs" / "zh" / "passes.md"):
        assert [name for name in registry.names(registry.PASSES) if f"| `{name}` |" not in page.read_text()] == []
    dependencies = (ROOT / "docs" / "dependencies.md").read_text()
    declared = re.findall(r'^  "([a-z-]+)[>=]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    runtime = declared[: declared.index("hypothesis")]
    assert [name for name in runtime if name not in dependencies] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_make_targets_of_the_readme_exist(readme):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme.read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_tables_of_targets_are_those_of_the_targets(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from targets_table import CHINESE_PAGE, PAGE, WORDS, in_chinese, lines, with_table

    table = list(lines())
    for page, rows in ((PAGE, table), (CHINESE_PAGE, in_chinese(table))):
        assert with_table(page.read_text(), rows) == page.read_text(), (
            "python benchmarks/targets_table.py writes it anew"
        )
    written = "\n".join(table)
    assert [phrase for phrase in yaml.safe_load(WORDS.read_text()) if phrase not in written] == []
