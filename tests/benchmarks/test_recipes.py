"""The benchmark of recipes: ratios of times are told as speeds, and its held-out orders were not trained on."""

import pytest
import recipes


def test_a_ratio_of_times_is_told_as_a_speed():
    assert recipes._faster({"value": 0.5, "lower": 0.4, "upper": 0.8}) == "2.00 × (1.25 to 2.50)"
    assert recipes._faster(None) == "–"


def test_every_recipe_has_a_claim():
    files = (recipes.ROOT / "examples" / "recipes").glob("*.yaml")
    assert {claim.recipe for claim in recipes.CLAIMS} == {path.stem for path in files}


def test_orders_are_all_different():
    orders = list(recipes._orders())
    assert len(set(orders)) == len(orders) > 3000


def test_task_wants_an_adapter_of_another_model(capsys):
    with pytest.raises(SystemExit):
        recipes._parse(["--model", "elsewhere"])
    assert "--adapter" in capsys.readouterr().err


def test_a_smaller_run_has_fewer_and_shorter_windows():
    assert recipes._size(recipes._parse([])) == []
    words = recipes._size(recipes._parse(["--samples", "16", "--length", "128"]))
    assert words == ["--samples", "16", "--length", "128", "--eval-length", "128"]
