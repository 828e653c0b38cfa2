"""A budget is kept where people show it, exceeded where they show that, else they cannot judge."""

from dataclasses import replace

import numpy as np
import pytest

from fr_edge.calibration.search.budget import (
    CANNOT_JUDGE,
    EXCEEDED,
    KEPT,
    Budget,
    check_judges,
    judge_loss,
)
from fr_edge.calibration.search.mixed_precision import bisect_float_layers
from fr_edge.errors import FacesError, GateFailed, UsageError
from fr_edge.metrics.intervals import TarInterval
from fr_edge.metrics.person_variance import Ends
from fr_edge.metrics.rates import EmbeddingLoss, RateChange, compare_embeddings

SAME = np.eye(4, dtype=np.float32)
BASE = compare_embeddings(SAME, SAME, np.arange(4))
BUDGET = Budget(0.003, far=1e-3)
OPEN, NAN = (0.0, 0.004), float("nan")


def with_drop(
    counted: Ends | None, likely: Ends | None, far: float = 1e-3, faces: int = 500
) -> EmbeddingLoss:
    drop = sum(counted) / 2 if counted else 0.0
    change = counted and TarInterval((0.9, 1.0), (0.9, 1.0), (-counted[1], -counted[0]))
    rate = RateChange(
        far, 0.95, 0.95 - drop, -drop, change,
        smoothed_drop=sum(likely) / 2 if likely else drop, smoothed_drop_interval_95=likely,
    )  # fmt: skip
    return replace(BASE, faces=faces, people=200, rates=(rate,))


@pytest.mark.parametrize(
    ("counted", "likely", "verdict"),
    [
        ((0.0, 0.0024), (0.0, 0.003), KEPT),
        ((-0.02, -0.0178), (-0.001, 0.002), KEPT),
        ((0.0, 0.0026), (0.0, 0.002), CANNOT_JUDGE),  # other people count .0013 + sqrt(2) .0013
        ((-0.02, -0.0155), (0.0, 0.002), CANNOT_JUDGE),  # a gain counts as 0: 0 + sqrt(2) .00225
        ((0.0, 0.002), (0.001, 0.0031), CANNOT_JUDGE),  # the likely drop alone
        ((0.0, 0.01), (0.003, 0.005), CANNOT_JUDGE),
        ((0.0, 0.01), (0.0031, 0.005), EXCEEDED),
        ((0.0031, 0.01), (0.0, 0.005), EXCEEDED),
        ((0.0, 0.001), None, CANNOT_JUDGE),
        (None, (0.0, 0.001), CANNOT_JUDGE),
        ((0.0, NAN), (0.0, 0.001), CANNOT_JUDGE),
        ((0.0, 0.001), (0.0, NAN), CANNOT_JUDGE),
    ],
)
def test_both_intervals_end_within_it(
    counted: Ends | None, likely: Ends | None, verdict: str
) -> None:
    loss = with_drop(counted, likely)
    assert BUDGET.verdict(loss) == verdict
    assert BUDGET.holds(loss) == (verdict == KEPT)


def test_a_rate_that_was_not_measured_cannot_judge() -> None:
    assert BUDGET.verdict(BASE) == CANNOT_JUDGE
    assert BUDGET.verdict(with_drop((0.0, 0.0), (0.0, 0.0), far=1e-2)) == CANNOT_JUDGE
    assert BUDGET.verdict(with_drop((0.0, 0.0), (0.0, 0.0))) == KEPT


def test_a_face_that_moved_too_far_is_shown_by_one() -> None:
    loss = replace(BASE, cosine=replace(BASE.cosine, min=0.95))
    assert Budget(min_cosine=0.95).verdict(loss) == KEPT
    assert Budget(min_cosine=0.951).verdict(loss) == EXCEEDED
    assert Budget(0.003, 0.951).verdict(loss) == EXCEEDED
    assert Budget(0.003, 0.95).verdict(loss) == CANNOT_JUDGE


@pytest.mark.parametrize(
    ("loss", "error", "hint"),
    [
        # .002 wide around .002, .001 from the limit: twice as narrow by four times the people
        (with_drop(OPEN, (0.0, 0.001)), "cannot judge TAR drop <= 0.003", "17.0 times as many"),
        (with_drop((0.0, 0.001), OPEN), r"\+0.0020 \(\+0.0000 to \+0.0040\)", "4.0 times as many"),
        (with_drop(OPEN, OPEN, faces=2048), "2048 faces of 200 people", "larger --far"),
        (
            with_drop((0.002, 0.006), (0.0, 0.001)),
            r"TAR drop \+0.0040 \(\+0.0020 to",
            "give more people",
        ),
        (with_drop(None, None), "cannot judge", "give more people"),
        (with_drop(None, (0.005, 0.015)), "no assignment holds TAR drop <= 0.003", "--fp16"),
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


def test_a_loss_above_the_budget_is_kept_by_no_draw_of_people() -> None:
    """60 people who differ in spread, and whose INT8 errors grow with it, drawn again and again:
    48,000 such people lose .0037 at FAR 1e-3, and counted losses scatter by .005 around that. The
    count and the smoothed drop plus its standard error let 12 of 40 such draws pass for .003."""
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(12):
        spread = np.exp(rng.normal(-0.35, 0.35, (60, 1, 1)))
        faces = rng.normal(size=(60, 1, 32)) + 0.75 * spread * rng.normal(size=(60, 4, 32))
        moved = faces + 0.1 * spread**2 * rng.normal(size=faces.shape)
        flat = (x.reshape(-1, 32).astype(np.float32) for x in (faces, moved))
        loss = judge_loss(*flat, np.repeat(np.arange(60), 4), BUDGET.far)
        kept.append([Budget(limit, far=BUDGET.far).holds(loss) for limit in (0.0037, 0.1)])
    assert np.sum(kept, axis=0).tolist() == [0, 12]
