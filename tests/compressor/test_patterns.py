import re

import pytest

from compressor.errors import InputError
from compressor.patterns import LONGEST, matches


@pytest.mark.parametrize("text", ["model.layers.0.q_proj", "model.layers.10.q_proj.x", "layers.0.q_proj", ""])
@pytest.mark.parametrize("pattern", [r"model\.layers\.\d+", r"(.*\.)?(q_proj)$", "", "layers|model", "[[a-m]"])
@pytest.mark.filterwarnings("ignore:Possible nested set")
def test_a_pattern_matches_as_in_re(pattern, text):
    assert matches(pattern, text, "x") == (re.match(pattern, text) is not None)
    assert matches(pattern, text, "x", whole=True) == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "((a{1,1000}){1,1000}){1,1000}b", "(?R)"])
def test_a_match_that_would_take_for_ever_is_given_up(pattern):
    with pytest.raises(InputError, match=r"adapter_config\.json holds a regular expression that takes too long"):
        matches(pattern, "a" * 200 + "!", "adapter_config.json")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", r"holds '\(', which is no regular expression"),
        ("a{1,99999999999}", "which is no regular expression"),
        ("(?a)(?u)x", "which is no regular expression"),
        ("(" * 3000 + "a" + ")" * 3000, r"\(\.\.\.', which is no regular expression"),
        ("a" * (LONGEST + 1), "of 20,001 characters; 20,000 are the most"),
    ],
)
def test_what_is_no_regular_expression_is_refused(pattern, says):
    with pytest.raises(InputError, match=says):
        matches(pattern, "a", "config.json")
