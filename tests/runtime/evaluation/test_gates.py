"""Gates fail on what is bad, and cannot judge what was not measured or not measured well enough."""

from dataclasses import replace

import pytest

from fr_edge.runtime.evaluation.gates import (
    VerdictReason,
    ceiling_gate,
    contradiction,
    floor_gate,
    gate_reasons,
    overall_verdict,
    people_gate,
)

UNKNOWN = "CANNOT JUDGE"


@pytest.mark.parametrize(
    ("value", "limit", "most", "verdict"),
    [
        (0.99, 0.99, False, "PASSED"),
        (0.98, 0.99, False, "FAILED"),
        (0.01, 0.01, True, "PASSED"),
        (0.02, 0.01, True, "FAILED"),
        (-0.5, 0.01, True, "PASSED"),
        (None, 0.0, True, UNKNOWN),
        (None, 0.0, False, UNKNOWN),
        (float("nan"), 0.0, False, UNKNOWN),
        (float("nan"), 0.0, True, UNKNOWN),
    ],
)
def test_verdict_of_a_value(value: float | None, limit: float, most: bool, verdict: str) -> None:
    gate = (ceiling_gate if most else floor_gate)("g", value, limit)
    assert gate.verdict == verdict
    assert gate.passed is (verdict == "PASSED")
    assert gate.at == ("most" if most else "least")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.01, 0.009), "PASSED"),
        ((0.0, 0.02), UNKNOWN),
        ((0.011, 0.02), "FAILED"),
        (None, UNKNOWN),
    ],
)
def test_the_intervals_bound_decides(interval: tuple[float, float] | None, verdict: str) -> None:
    """The same value of .005 against a limit of .01: what other people could show counts."""
    ceiling = people_gate("drop", 0.005, 0.01, "most", interval)
    assert ceiling.verdict == verdict
    mirrored = None if interval is None else (1 - interval[1], 1 - interval[0])
    floor = people_gate("TAR", 0.995, 0.99, "least", mirrored)
    assert floor.verdict == verdict
    assert bool(ceiling.cure) == bool(ceiling.reason) == (verdict == UNKNOWN)


def test_the_cure_names_how_many_people() -> None:
    gate = people_gate("drop", 0.0, 0.01, "most", (-0.02, 0.02))
    assert "4 times as many people" in gate.cure
    assert "0.0200" in gate.cure


def test_a_reason_forbids_a_verdict() -> None:
    assert people_gate("drop", 0.0, 0.01, "most", (0.0, 0.0), "few impostors").verdict == UNKNOWN


def test_failed_goes_before_cannot_judge() -> None:
    assert overall_verdict([]) == "PASSED"
    assert overall_verdict(["PASSED", UNKNOWN]) == UNKNOWN
    assert overall_verdict([UNKNOWN, "FAILED", "PASSED"]) == "FAILED"


def test_a_stored_verdict_must_follow_from_its_gates() -> None:
    good = floor_gate("min cosine", 0.99, 0.95)
    wide = people_gate("drop", 0.005, 0.01, "most", (0.0, 0.02))
    bad = ceiling_gate("drop", 0.02, 0.01)
    other = VerdictReason(UNKNOWN, "the labels are mixed up")
    assert contradiction("PASSED", [good], []) == ""
    assert contradiction(UNKNOWN, [good, wide], gate_reasons([wide])) == ""
    assert contradiction(UNKNOWN, [good], [other]) == ""
    assert contradiction("FAILED", [wide, bad], []) == ""
    assert "its gates say FAILED" in contradiction("PASSED", [good, bad], [])
    assert "its gates say CANNOT JUDGE" in contradiction("PASSED", [good], [other])
    edited = replace(bad, verdict="PASSED", passed=True)
    assert "is called PASSED and is FAILED" in contradiction("PASSED", [edited], [])
    assert "is called PASSED" in contradiction("PASSED", [replace(wide, verdict="PASSED")], [])
    assert contradiction("FAILED", [replace(bad, passed=True)], [])
    # A value at its limit may lie on its other side after rounding; reports of 0.1 have no verdicts.
    assert contradiction("PASSED", [replace(good, value=0.949999)], []) == ""
    assert contradiction("PASSED", [replace(bad, verdict="")], []) == ""
