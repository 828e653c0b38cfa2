"""Gates as JUnit: what a CI system counts."""

from xml.etree import ElementTree

import numpy as np

from fr_edge.metrics.rates import measure_drift
from fr_edge.runtime.evaluation.gates import ceiling_gate, floor_gate
from fr_edge.runtime.evaluation.reference import ReferenceCheck
from fr_edge.runtime.evaluation.result import VerifyResult, junit_xml


def test_every_gate_is_a_case() -> None:
    gates = (
        floor_gate("min cosine", 0.99, 0.95),
        ceiling_gate("a <drop> & more", 0.5, 0.01),
        ceiling_gate("unmeasured", None, 0.01, "no faces"),
    )
    rows = np.ones((2, 3), np.float32)
    drift = measure_drift(rows, rows, ("a", "b"))
    golden = ReferenceCheck("PyTorch", 1.0, drift)
    text = junit_xml(VerifyResult(False, "int8", "x", "reference", drift, gates, golden))
    suite = ElementTree.fromstring(text)
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.get("name") for case in suite] == [gate.name for gate in gates]
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["a <drop> & more", "unmeasured"]
    assert "no faces" in (suite[2].find("failure").get("message") or "")  # type: ignore[union-attr]
