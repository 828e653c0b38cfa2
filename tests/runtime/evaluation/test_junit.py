"""Gates as JUnit: what a CI system counts."""

from xml.etree import ElementTree

from fr_edge.runtime.evaluation.gates import Gate
from fr_edge.runtime.evaluation.result import junit_xml


def test_every_gate_is_a_case() -> None:
    gates = [
        Gate("min cosine", 0.99, 0.95),
        Gate("a <drop> & more", 0.5, 0.01, most=True),
        Gate("unmeasured", None, 0.01, most=True, why="no faces"),
    ]
    text = junit_xml(
        {"engine": "int8", "backend": "x", "gates": [gate.to_json() for gate in gates]}
    )
    suite = ElementTree.fromstring(text)
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.get("name") for case in suite] == [gate.name for gate in gates]
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["a <drop> & more", "unmeasured"]
    assert "no faces" in (suite[2].find("failure").get("message") or "")  # type: ignore[union-attr]
