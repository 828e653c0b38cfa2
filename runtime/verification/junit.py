"""A certificate as JUnit XML: every gate a test case, for CI systems that know nothing else."""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree


def junit_xml(certificate: Mapping[str, Any]) -> str:
    """From the JSON of `Verified.to_json()` to an XML document."""
    gates = certificate["gates"]
    name = f"fr-edge verify {certificate['engine']} on {certificate['backend']}"
    failures = sum(not gate["passed"] for gate in gates)
    suite = ElementTree.Element(
        "testsuite", name=name, tests=str(len(gates)), failures=str(failures), errors="0"
    )
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="fr-edge.verify")
        case.set("name", gate["name"])
        value = gate.get("reason", "not measured") if gate["value"] is None else gate["value"]
        found = f"found {value}, expected at {gate['at']} {gate['limit']}"
        if gate["passed"]:
            ElementTree.SubElement(case, "system-out").text = found
        else:
            ElementTree.SubElement(case, "failure", message=found).text = found
    ElementTree.indent(suite)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, "unicode") + "\n"
    )
