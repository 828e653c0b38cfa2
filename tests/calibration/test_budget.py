"""A budget is kept where people show it, exceeded where they show that, else they cannot judge."""

from dataclasses import replace

import numpy as np
import pytest

from fr_edge.calibration.budget import CANNOT_JUDGE, EXCEEDED, KEPT, Budget, check_judges
from fr_edge.calibration.mixed_precision import bisect_float_layers
from fr_edge.errors import FacesError, GateFailed, UsageError
from fr_edge.metrics.rates import EmbeddingLoss, RateChange, compare_embeddings

SAME = np.eye(4, dtype=np.float32)
BASE = compare_embeddings(SAME, SAME, np.arange(4))
BUDGET = Budget(0.003, far=1e-3)


def with_drop(
    drop: float, interval: tuple[float, float] | None, far: float = 1e-3, faces: int = 500
) -> EmbeddingLoss:
    middle = sum(interval) / 2 if interval else drop
    rate = RateChange(
        far, 0.95, 0.95 - drop, -drop, smoothed_drop=middle, smoothed_drop_interval_95=interval
    )
    return replace(BASE, faces=faces, people=200, rates=(rate,))


@pytest.mark.parametrize(
    ("drop", "interval", "verdict"),
    [
        (0.003, (0.0, 0.003), KEPT),
        (-0.02, (-0.001, 0.002), KEPT),
        (0.0031, (0.0, 0.002), CANNOT_JUDGE),  # the count alone says no
        (0.0, (0.001, 0.0031), CANNOT_JUDGE),  # the interval's upper end alone
        (0.004, (0.003, 0.005), CANNOT_JUDGE),
        (0.0, (0.0031, 0.005), EXCEEDED),
        (0.01, (0.004, 0.02), EXCEEDED),
        (0.0, None, CANNOT_JUDGE),
        (float("nan"), (0.0, 0.001), CANNOT_JUDGE),
        (0.0, (0.0, float("nan")), CANNOT_JUDGE),
    ],
)
def test_both_the_count_and_the_upper_end_are_within_it(
    drop: float, interval: tuple[float, float] | None, verdict: str
) -> None:
    loss = with_drop(drop, interval)
    assert BUDGET.verdict(loss) == verdict
    assert BUDGET.holds(loss) == (verdict == KEPT)


def test_a_rate_that_was_not_measured_cannot_judge() -> None:
    assert BUDGET.verdict(BASE) == CANNOT_JUDGE
    assert BUDGET.verdict(with_drop(0.0, (0.0, 0.0), far=1e-2)) == CANNOT_JUDGE
    assert BUDGET.verdict(with_drop(0.0, (0.0, 0.0))) == KEPT


def test_a_face_that_moved_too_far_is_shown_by_one() -> None:
    loss = replace(BASE, cosine=replace(BASE.cosine, min=0.95))
    assert Budget(min_cosine=0.95).verdict(loss) == KEPT
    assert Budget(min_cosine=0.951).verdict(loss) == EXCEEDED
    assert Budget(0.003, 0.951).verdict(loss) == EXCEEDED
    assert Budget(0.003, 0.95).verdict(loss) == CANNOT_JUDGE


@pytest.mark.parametrize(
    ("loss", "error", "hint"),
    [
        # half .002 wide around .002, .001 from the limit: twice as narrow by four times the people
        (
            with_drop(0.0, (0.0, 0.004)),
            "cannot judge TAR drop <= 0.003",
            "4.0 times as many people",
        ),
        (with_drop(0.0, (0.0, 0.004), faces=2048), "500|2048 faces of 200 people", "larger --far"),
        (with_drop(0.004, (0.0, 0.001)), r"TAR drop \+0.0040, likely \+0.0005", "give more people"),
        (with_drop(0.0, None), "cannot judge", "give more people"),
        (with_drop(0.01, (0.005, 0.015)), "no assignment holds TAR drop <= 0.003", "--fp16"),
    ],
)
def test_what_is_said_when_no_assignment_is_kept(
    loss: EmbeddingLoss, error: str, hint: str
) -> None:
    with pytest.raises(GateFailed, match=error) as raised:
        bisect_float_layers(5, lambda _: loss, BUDGET)
    assert hint in raised.value.hint


def test_people_who_cannot_judge_are_told_before_the_search() -> None:
    """2 faces of 60 people: 7,080 impostor pairs, 7 of them above a FAR of 1e-3."""
    labels = np.repeat(np.arange(60), 2)
    check_judges(labels, BUDGET)
    check_judges(labels[:4], Budget(min_cosine=0.9))
    with pytest.raises(FacesError, match="7,080 impostor pairs.*1e-05 needs 500,000") as raised:
        check_judges(labels, replace(BUDGET, far=1e-5))
    assert "1,001 faces" in raised.value.hint
    with pytest.raises(FacesError, match="cannot judge") as raised:
        check_judges(labels, replace(BUDGET, far=1e-7))
    assert "2,048 faces do not judge" in raised.value.hint
    with pytest.raises(FacesError, match="19 people with two faces"):
        check_judges(np.r_[labels[:38], np.arange(100, 182)], BUDGET)


def test_a_budget_that_makes_no_sense() -> None:
    for wrong in (
        {},
        {"max_tar_drop": -0.1},
        {"max_tar_drop": float("nan")},
        {"min_cosine": 2.0},
        {"min_cosine": 0.9, "far": 0.0},
    ):
        with pytest.raises(UsageError):
            Budget(**wrong)


def test_a_loss_above_the_budget_is_kept_by_few_draws_of_people() -> None:
    """60 people who differ in spread, and whose INT8 errors grow with it, drawn again and again:
    48,000 such people lose .0037 at FAR 1e-3, and counted losses scatter by .005 around that. The
    count and the smoothed drop plus its standard error let 12 of these 40 draws pass."""
    rng = np.random.default_rng(1)
    budget, losses = Budget(0.003, far=1e-3), []
    for _ in range(40):
        spread = np.exp(rng.normal(-0.35, 0.35, (60, 1, 1)))
        faces = rng.normal(size=(60, 1, 32)) + 0.75 * spread * rng.normal(size=(60, 4, 32))
        moved = faces + 0.1 * spread**2 * rng.normal(size=faces.shape)
        flat = (x.reshape(-1, 32).astype(np.float32) for x in (faces, moved))
        losses.append(compare_embeddings(*flat, np.repeat(np.arange(60), 4)))
    assert sum(budget.holds(loss) for loss in losses) <= 2
    assert sum(replace(budget, max_tar_drop=0.02).holds(loss) for loss in losses) >= 38
