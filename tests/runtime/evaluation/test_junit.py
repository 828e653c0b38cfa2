"""Gates as JUnit: what a CI system counts."""

from xml.etree import ElementTree

from fr_edge.runtime.evaluation.gates import (
    VerdictReason,
    ceiling_gate,
    floor_gate,
    gate_reasons,
    junit_xml,
)


def test_gates_other_reasons_and_what_was_not_measured_are_cases() -> None:
    gates = (
        floor_gate("min cosine", 0.99, 0.95),
        ceiling_gate("a <drop> & more", 0.5, 0.01),
        ceiling_gate("unmeasured", None, 0.01, "no faces", cure="give --faces"),
    )
    doubt = VerdictReason("CANNOT JUDGE", "labels: 80% look like another person", "mend them")
    reasons = (*gate_reasons(gates), doubt)
    text = junit_xml("verify", "int8 on x", gates, reasons, ("10-fold accuracy: no pair list",))
    suite = ElementTree.fromstring(text)
    assert suite.get("name") == "fr-edge verify int8 on x"
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["5", "1", "2", "1"]
    names = [*(gate.name for gate in gates), "labels", "10-fold accuracy"]
    assert [case.get("name") for case in suite] == names
    assert [[child.tag for child in case] for case in suite] == [
        ["system-out"],
        ["failure"],
        ["error"],
        ["error"],
        ["skipped"],
    ]
    error = suite[2].find("error")
    assert error is not None
    assert "no faces" in (error.get("message") or "")
    assert "give --faces" in (error.text or "")
