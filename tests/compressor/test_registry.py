"""Command-line spellings of passes and targets."""

from __future__ import annotations

import pytest

from compressor.errors import InputError
from compressor.registry import parse_spec


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
