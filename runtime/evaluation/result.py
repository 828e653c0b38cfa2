"""The certificate: all that `verify` found, as a value and as the JSON that scripts rely on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from ..._version import __version__
from ...documents import to_builtins
from ...metrics.comparison import VerificationComparison
from ...metrics.rates import CosineDrift
from ..machine.device import describe_device
from .gallery import GalleryMigration
from .gates import Gate
from .reference import ReferenceCheck


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found; `drift` is over the given faces, or the golden ones without any.
    `findings` say what is wrong where something is."""

    engine: str
    backend: str
    reference: str
    proof: ReferenceCheck
    drift: CosineDrift
    faces: dict[str, Any] | None
    separation: VerificationComparison | None
    mixed: dict[str, str | float] | None
    teacher: GalleryMigration | None
    gates: tuple[Gate, ...]
    findings: tuple[str, ...]
    not_measured: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "tar": {},
            "accuracy": None,
            "curves": None,
            "strata": [],
            "degraded": [],
        }
        return {
            "passed": self.passed,
            "engine": self.engine,
            "backend": self.backend,
            "reference": self.reference,
            "cosine": to_builtins(self.drift),
            "worst": to_builtins(self.drift.worst),
            **(to_builtins(self.separation) if self.separation else told),
            "gallery": self.mixed,
            "teacher": self.teacher.to_json() if self.teacher else None,
            "gates": [gate.to_json() for gate in self.gates],
            "findings": list(self.findings),
            "golden": {
                "original": self.proof.origin,
                "fp32_min_cosine": round(self.proof.fp32, 6),
                "engine": to_builtins(self.proof.engine),
            },
            "faces": self.faces,
            "not_measured": list(self.not_measured),
            "fr_edge": __version__,
            "device": to_builtins(describe_device()),
        }


# A certificate as JUnit XML: every gate a test case, for CI systems that know nothing else.


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
