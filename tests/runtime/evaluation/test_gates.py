"""Gates fail on what is bad and on what nobody measured."""

import pytest

from fr_edge.runtime.evaluation.gates import ceiling_gate, floor_gate


@pytest.mark.parametrize(
    ("value", "limit", "most", "passed"),
    [
        (0.99, 0.99, False, True),
        (0.98, 0.99, False, False),
        (0.01, 0.01, True, True),
        (0.02, 0.01, True, False),
        (-0.5, 0.01, True, True),
        (None, 0.0, True, False),
        (None, 0.0, False, False),
        (float("nan"), 0.0, False, False),
        (float("nan"), 0.0, True, False),
    ],
)
def test_verdict(value: float | None, limit: float, most: bool, passed: bool) -> None:
    gate = (ceiling_gate if most else floor_gate)("g", value, limit)
    assert gate.passed is passed
    assert gate.at == ("most" if most else "least")
