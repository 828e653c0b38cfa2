"""Recipes: three places a value can come from, and what is refused."""

from pathlib import Path

import pytest

from fr_edge.distill.recipe import (
    Recipe,
    make_recipe,
    read_recipe,
    shipped_recipes,
)
from fr_edge.documents import to_builtins
from fr_edge.errors import UsageError


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_reads(name: str) -> None:
    recipe = read_recipe(name)
    assert make_recipe(to_builtins(recipe)) == recipe


def test_there_are_the_promised_recipes() -> None:
    assert {"tiny", "tiny-teacher", "small-real", "adadistill"} <= set(shipped_recipes())


def test_set_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 3\nlr = 1\nmethod = "cosface"\nmilestones = [1, 2]\n')
    recipe = read_recipe(path, ["lr=0.5", "network=mobilefacenet-0.5", "milestones=[2]"])
    assert (recipe.epochs, recipe.lr, recipe.method) == (3, 0.5, "cosface")
    assert (recipe.network, recipe.milestones) == ("mobilefacenet-0.5", (2,))
    assert recipe.momentum == Recipe().momentum


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("epoch=3", "no key 'epoch'", "'epochs'"),
        ("weight_deacy=1", "weight_deacy", "'weight_decay'"),
        ("epochs=many", "whole number", ""),
        ("epochs=2.5", "whole number", ""),
        ("epochs=true", "whole number", ""),
        ("epochs=0", "outside", ""),
        ("lr=nan", "outside", ""),
        ("compile=1", "true or false", ""),
        ("method=adadistil", "one of", ""),
        ("milestones=[3, 1]", "order", ""),
        ("milestones=3", "list", ""),
        ("accumulate=7", "equal parts", ""),
        ("epochs", "key=value", ""),
    ],
)
def test_a_bad_value_is_named(change: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe("tiny", [change])
    assert hint in caught.value.hint


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe") as caught:
        read_recipe("smal-real")
    assert "small-real" in caught.value.hint
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3")
    with pytest.raises(UsageError, match="not a TOML file"):
        read_recipe(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a TOML file"):
        read_recipe(broken)
