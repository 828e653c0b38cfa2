"""Gates as JUnit XML, which CI systems count and show."""

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from .gates import Gate
from .verdict import FAILED, PASSED, VerdictReason


def junit_xml(
    command: str,
    title: str,
    gates: Sequence[Gate],
    reasons: Iterable[VerdictReason],
    not_measured: Sequence[str],
) -> str:
    """A test case for each gate, for each other reason of the verdict, and for what was not measured.

    Args:
        command: "verify", "evaluate" or "benchmark".
        title: Name of the test suite, such as "int8 on onnxruntime".
        gates: A failure each that is FAILED, an error each that cannot be judged.
        reasons: Of the verdict; those of gates may be among them.
        not_measured: In words; skipped cases.

    Returns:
        An XML document.
    """
    suite = ElementTree.Element("testsuite", name=f"fr-edge {command} {title}")
    for gate in gates:
        case = _case(suite, command, gate.name)
        value = "not measured" if gate.value is None else f"{gate.value:.6g}"
        if gate.interval_95:
            value += " ({:.6g} to {:.6g})".format(*gate.interval_95)
        message = f"found {value}, expected at {gate.at} {gate.limit:g}"
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            _problem(case, VerdictReason(gate.verdict, f"{message} {gate.reason}", gate.cure))
    names = tuple(gate.name for gate in gates)
    for reason in reasons:
        if not reason.reason.startswith(names):
            _problem(_case(suite, command, reason.reason.partition(":")[0]), reason)
    for note in not_measured:
        case = _case(suite, command, note.partition(":")[0])
        ElementTree.SubElement(case, "skipped", message=note)
    suite.set("tests", str(len(suite)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"*/{tag}"))))
    ElementTree.indent(suite)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, "unicode") + "\n"
    )


def _case(suite: ElementTree.Element, command: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"fr-edge.{command}", name=name)


def _problem(case: ElementTree.Element, reason: VerdictReason) -> None:
    """FAILED as a failure, CANNOT JUDGE as an error: CI systems count both as not passed."""
    assert reason.verdict != PASSED
    tag = "failure" if reason.verdict == FAILED else "error"
    text = f"{reason.verdict}: {reason.reason}".strip()
    problem = ElementTree.SubElement(case, tag, message=text, type=reason.verdict)
    problem.text = f"{text}\n{reason.cure}" if reason.cure else text
