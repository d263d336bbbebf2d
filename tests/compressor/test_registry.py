"""Command-line spellings of passes and targets."""

from __future__ import annotations

import pytest

from compressor.errors import InputError
from compressor.registry import check_installation, parse_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtn", ("rtn", {})),
        ("gptq:bits=4,damping=0.1", ("gptq", {"bits": 4, "damping": 0.1})),
        ("gptq:symmetric=false,group_size=channel", ("gptq", {"symmetric": False, "group_size": "channel"})),
        ("rtn:skip=*.down_proj+*.o_proj", ("rtn", {"skip": ["*.down_proj", "*.o_proj"]})),
        ("rtn:skip=*.mlp.*", ("rtn", {"skip": "*.mlp.*"})),  # to YAML, a reference to nothing
        ("rtn:skip=[abc", ("rtn", {"skip": "[abc"})),
    ],
)
def test_values_are_scalars_and_lists(text, expected):
    assert parse_spec(text) == expected


def test_an_option_without_a_value_is_refused():
    with pytest.raises(InputError, match="'bits' in 'rtn:bits' is not of the form"):
        parse_spec("rtn:bits")


@pytest.mark.parametrize(
    ("name", "listing", "package"),
    [
        ("RECORD", "compressor/__init__.py,sha256=abc,10\ndjango_x-4.dist-info/RECORD,,\n", "compressor"),
        ("RECORD", "passes.py,sha256=abc,10\n", "passes"),
        ("top_level.txt", "other\ntargets\n", "targets"),
    ],
)
def test_another_distribution_with_a_package_of_ours_is_named(tmp_path, monkeypatch, name, listing, package):
    info = tmp_path / "django_x-4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: django-x\nVersion: 4\n")
    (info / name).write_text(listing)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"The distribution django-x also installs a package named '{package}'"):
        check_installation()


def test_distributions_that_stay_out_of_the_way_are_fine(tmp_path, monkeypatch):
    info = tmp_path / "django_x-4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: django-x\nVersion: 4\n")
    (info / "RECORD").write_text("django_x/compressor/__init__.py,sha256=abc,10\ncompressors/a.py,sha256=abc,10\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_installation()
