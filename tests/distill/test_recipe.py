"""Recipes: three places a value can come from, and what is refused."""

from pathlib import Path

import pytest

from fr_edge.distill.recipe import (
    Recipe,
    loss_weights,
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
    names = {"tiny", "tiny-teacher", "small-real", "adadistill", "adadistill-plus"}
    assert names == set(shipped_recipes())


def test_the_papers_run_is_the_published_codes() -> None:
    """Against the settings of the authors' MS1MV2 run (config.py and train_AdaDistill.py): m and s of
    the margin; rate, momentum, decay and clipping of SGD; four GPUs of 128 images with BatchNorm
    each their own, float32; epochs at which the rate falls; steps; verification every 5,686 of them."""
    paper = read_recipe("adadistill")
    assert loss_weights(paper.losses) == {"adadistill": 1.0}
    assert (paper.margin, paper.m, paper.s) == ("arcface", 0.45, 64.0)
    assert (paper.alpha, paper.gradient, paper.compat) == ("product", "exact", "official")
    assert (paper.network, paper.output, paper.teacher_views) == ("mobilefacenet", "plain", "each")
    rates = (paper.optimizer, paper.lr, paper.momentum, paper.weight_decay, paper.clip)
    assert rates == ("sgd", 0.1, 0.9, 5e-4, 5.0)
    assert (paper.schedule, paper.milestones, paper.gamma) == ("step", (7, 13, 19, 24), 0.1)
    assert (paper.warmup, paper.ema, paper.amp, paper.accumulate) == (0.0, 0.0, "off", 1)
    assert (paper.batch, paper.norm_batch) == (4 * 128, 128)
    per_epoch = 5_822_653 // paper.batch
    assert paper.epochs * per_epoch == 295_672
    assert paper.verify_every * per_epoch == 5_686
    changes = {"shift", "light", "crop", "blur", "low_resolution", "occlusion", "per_identity"}
    assert not any(getattr(paper, key) for key in changes)
    assert read_recipe("adadistill", ["margin=cosface", "m=0.35"]).m == 0.35


def test_the_winner_has_the_papers_budget() -> None:
    paper, plus, small = map(read_recipe, ("adadistill", "adadistill-plus", "small-real"))
    for key in ("network", "epochs", "batch", "m", "s", "margin", "norm_batch"):
        assert getattr(plus, key) == getattr(paper, key), key
    loss = ("losses", "output", "teacher_views", "bank_s")
    steps = ("optimizer", "lr", "weight_decay", "clip", "schedule", "warmup", "shift")
    for key in (*loss, *steps):
        assert getattr(plus, key) == getattr(small, key), key
    assert loss_weights(small.losses) == {"adadistill": 1.0, "bank": 20.0}
    # All of MS1MV2's class means fit, and the images of the small set.
    assert plus.bank_mb << 20 >= 85_742 * 512 * 4
    assert small.bank_mb << 20 >= 10_076 * 128 * 4


def test_set_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 3\nlr = 1\nlosses = ["cosface"]\nmilestones = [1, 2]\n')
    recipe = read_recipe(path, ["lr=0.5", "network=mobilefacenet-0.5", "milestones=[2]"])
    assert (recipe.epochs, recipe.lr, recipe.losses) == (3, 0.5, ("cosface",))
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
        ("leraning_rate=1", "leraning_rate", "'lr'"),
        ("batchsize=1", "batchsize", "'batch'"),
        ("method=arcface", "no key 'method'", "'losses'"),
        ("losses=adadistil", "no loss 'adadistil'", "'adadistill'"),
        ("losses=cosine:-1", "above 0", "cosine:20"),
        ("losses=cosine:many", "above 0", ""),
        ("losses=cosine:nan", "above 0", ""),
        ("losses=cosine:2e6", "above 0, up to 1000000; found '2e6'", ""),
        ("losses=cosine,cosine:2", "twice", ""),
        ("train={lr = 1}", "no sections; found .train.", "without"),
        ("seed=-1", "outside 0 to 2147483647", ""),
        ("losses=[]", "empty", "adadistill"),
        ("milestones=[3, 1]", "order", ""),
        ("milestones=3,x", "list", ""),
        ("accumulate=7", "equal parts", ""),
        ("epochs", "key=value", ""),
    ],
)
def test_a_bad_value_is_named(change: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe("tiny", [change])
    assert hint in caught.value.hint


def test_a_list_may_stand_between_commas() -> None:
    changes = ["milestones=10,20", "verify_pairs=a.bin,b.bin", "losses=adadistill,cosine:20"]
    recipe = read_recipe("tiny", changes)
    assert recipe.milestones == (10, 20)
    assert recipe.verify_pairs == ("a.bin", "b.bin")
    assert loss_weights(recipe.losses) == {"adadistill": 1.0, "cosine": 20.0}
    assert read_recipe("tiny", ["milestones=3", "verify_pairs=x.csv"]).milestones == (3,)
    assert recipe.needs_teacher
    assert not read_recipe("tiny", ["losses=arcface"]).needs_teacher


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("lr=.05", 0.05),
        ("lr=1", 1.0),
        ("compile=True", True),
        ("data_report=2026-12-04", "2026-12-04"),  # a date in TOML
        ("cache=1234", "1234"),
        ("cache=[1", "[1"),
        ('init="a b"', "a b"),
        ("csv=", ""),
        ("verify_pairs=2026-1.bin, b", ("2026-1.bin", "b")),
        ('verify_pairs=["a,1", "b"]', ("a,1", "b")),
    ],
)
def test_values_are_taken_as_people_write_them(change: str, value: object) -> None:
    taken = getattr(read_recipe("tiny", [change]), change.partition("=")[0])
    assert (taken, type(taken)) == (value, type(value))


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("init", "exclude", "data_report", "tensorboard", "csv", "cache")
    recipe = read_recipe("tiny", [*(f"{name}=~/{name}" for name in names), "verify_pairs=~/a,b"])
    assert [getattr(recipe, name) for name in names] == [f"{tmp_path}/{name}" for name in names]
    assert recipe.verify_pairs == (f"{tmp_path}/a", "b")


@pytest.mark.parametrize(
    ("changes", "m"),
    [
        ([], 0.45),
        (["margin=cosface"], 0.35),  # the paper's, and not the file's, which is ArcFace's
        (["margin=cosface", "m=.4"], 0.4),
        (["m=.4", "margin=cosface"], 0.4),
        (["margin=adaface"], 0.4),
        (["margin=arcface"], 0.45),
    ],
)
def test_a_margin_brings_its_own_size(changes: list[str], m: float) -> None:
    assert read_recipe("adadistill", changes).m == m


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
