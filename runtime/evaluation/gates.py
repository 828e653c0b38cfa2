"""Gates: measured values, their limits and three verdicts, in JSON and as JUnit XML.

A gate whose value has a 95 % interval holds when the whole interval keeps the limit, fails when
none of it does, and cannot be judged when the interval holds the limit. Without an interval the
value alone decides.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ...metrics.accuracy import single_fold

PASSED = "PASSED"
FAILED = "FAILED"
CANNOT_JUDGE = "CANNOT JUDGE"

Ends = tuple[float, float]

MORE_PEOPLE = "give more people with two photographs or more"
_ROUNDED = 1e-5  # numbers of stored reports are rounded to 1e-6
_MANY_TIMES = 20  # as many people as given, up to which the cure names a number


@dataclass(frozen=True)
class VerdictReason:
    """Why a verdict is not PASSED.

    Attributes:
        verdict: "FAILED" or "CANNOT JUDGE".
        reason: What was found, in words.
        cure: What to do next, in words; empty where the reason names it.
    """

    verdict: str
    reason: str
    cure: str = ""


def overall_verdict(verdicts: Iterable[str]) -> str:
    """The verdict of several: FAILED before CANNOT JUDGE before PASSED.

    Args:
        verdicts: The single ones.
    """
    given = set(verdicts)
    return FAILED if FAILED in given else CANNOT_JUDGE if CANNOT_JUDGE in given else PASSED


@dataclass(frozen=True)
class Gate:
    """A limit and its verdict; make one with `floor_gate` or `ceiling_gate`.

    Attributes:
        value: What was measured; None where it could not be.
        at: "least" for a floor, "most" for a ceiling.
        passed: Whether the verdict is PASSED.
        reason: Why the value cannot be judged.
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; empty in reports of earlier versions.
        interval_95: 95 % interval of the value, by which it was judged.
        cure: What would let it be judged.
    """

    name: str
    value: float | None
    limit: float
    at: str
    passed: bool
    reason: str = ""
    verdict: str = ""
    interval_95: Ends | None = None
    cure: str = ""

    def describe(self) -> str:
        """`min cosine 0.9712, at least 0.95`."""
        if self.value is None:
            return f"{self.name}, at {self.at} {self.limit:g}: {self.reason or 'not measured'}"
        value = f"{self.value:.4f}"
        between = (
            "" if self.interval_95 is None else " ({:.4f} to {:.4f})".format(*self.interval_95)
        )
        return f"{self.name} {value}{between}, at {self.at} {self.limit:g}"


def floor_gate(
    name: str,
    value: float | None,
    limit: float,
    reason: str = "",
    interval: Ends | None = None,
    cure: str = "",
) -> Gate:
    """A gate that passes from its limit upwards.

    Args:
        name: What is judged.
        value: What was measured; None where it could not be.
        limit: The smallest value that passes.
        reason: Why the value is missing or proves nothing: the gate cannot be judged.
        interval: 95 % interval of the value.
        cure: What would let it be judged.
    """
    return _gate(name, value, limit, "least", reason, interval, cure)


def ceiling_gate(
    name: str,
    value: float | None,
    limit: float,
    reason: str = "",
    interval: Ends | None = None,
    cure: str = "",
) -> Gate:
    """A gate that passes up to its limit.

    Args:
        name: What is judged.
        value: What was measured; None where it could not be.
        limit: The largest value that passes.
        reason: Why the value is missing or proves nothing: the gate cannot be judged.
        interval: 95 % interval of the value.
        cure: What would let it be judged.
    """
    return _gate(name, value, limit, "most", reason, interval, cure)


def people_gate(
    name: str,
    value: float,
    limit: float,
    at: str,
    interval: Ends | None,
    reason: str = "",
    cure: str = MORE_PEOPLE,
) -> Gate:
    """A gate of a value that people are the sample of: without an interval it cannot be judged.

    Args:
        name: What is judged.
        value: What was measured.
        limit: The limit.
        at: "least" for a floor, "most" for a ceiling.
        interval: 95 % interval of the value; None with too few people.
        reason: Why the value proves nothing.
        cure: What would let it be judged.
    """
    if interval is None and not reason:
        reason = "too few people for a 95 % interval"
    elif interval is not None and not reason and interval[0] <= limit <= interval[1]:
        bound = interval[0] if at == "least" else interval[1]
        room = abs(limit - value)
        keeps = value > limit if at == "least" else value < limit
        cure += f", or a limit of {bound:.4f}"
        times = math.ceil((abs(bound - value) / room) ** 2) if keeps and room else math.inf
        if times <= _MANY_TIMES:
            cure = f"give about {max(2, times)} times as many people, or a limit of {bound:.4f}"
    return _gate(name, value, limit, at, reason, interval, cure)


def eer_gate(value: float, limit: float, interval: Ends | None, *, named: bool) -> Gate:
    """The gate of an equal error rate.

    Args:
        value: The rate, a fraction.
        limit: Its ceiling.
        interval: 95 % interval of the rate; None if it has no interval.
        named: Whether it is known who is who. Pairs that share people are not independent, so a
            pair list that does not name them gives no interval.
    """
    return people_gate(
        "equal error rate", value, limit, "most", interval, *nameless(named, interval)
    )


def accuracy_gate(value: float, limit: float, interval: Ends | None, folds: int) -> Gate:
    """The gate of an accuracy over the folds of a pair list.

    Args:
        value: The accuracy, a fraction.
        limit: Its floor.
        interval: 95 % interval of the accuracy; None if it has no interval.
        folds: Of the pair list.
    """
    reason = single_fold(folds)
    cure = "give a pair list with ten folds that share no person" if reason else MORE_PEOPLE
    return people_gate("10-fold accuracy", value, limit, "least", interval, reason, cure)


def nameless(named: bool, interval: Ends | None) -> tuple[str, str]:
    """Why a rate of a pair list has no interval, and the cure.

    Args:
        named: Whether it is known who is who.
        interval: 95 % interval of the rate; None if it has no interval.

    Returns:
        Reason and cure for `people_gate`; the reason is empty where names are not what is missing.
    """
    if named or interval is not None:
        return "", MORE_PEOPLE
    return (
        "the pair list does not name the people, so the rate has no 95 % interval",
        "give the faces in a folder per person",
    )


def gate_reasons(gates: Iterable[Gate]) -> list[VerdictReason]:
    """Why gates did not pass.

    Args:
        gates: Judged ones.
    """
    return [
        VerdictReason(
            gate.verdict,
            gate.describe()
            if gate.verdict == FAILED or gate.value is None
            else f"{gate.describe()}: {gate.reason}",
            gate.cure,
        )
        for gate in gates
        if gate.verdict != PASSED
    ]


def contradiction(verdict: str, gates: Iterable[Gate], reasons: Iterable[VerdictReason]) -> str:
    """Why a stored verdict does not follow from its gates and reasons, as after an edit by hand.

    Args:
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE".
        gates: As they are stored; those of earlier versions have no verdicts and are not looked at.
        reasons: Why the verdict is not PASSED, gates among them.

    Returns:
        A sentence; empty where the verdict follows.
    """
    verdicts = [reason.verdict for reason in reasons]
    for gate in gates:
        if not gate.verdict:
            continue
        value, ends, limit = gate.value, gate.interval_95, gate.limit
        judged = _gate(gate.name, value, limit, gate.at, gate.reason, ends, "").verdict
        numbers = (*(ends or ()), *(() if value is None else (value,)))
        near = any(abs(number - limit) <= _ROUNDED * max(1, abs(limit)) for number in numbers)
        wrong = judged != gate.verdict and not near
        if wrong or gate.passed != (gate.verdict == PASSED):
            return f"its gate {gate.describe()!r} is called {gate.verdict} and is {judged}"
        verdicts.append(gate.verdict)
    expected = overall_verdict(verdicts)
    return "" if verdict == expected else f"it is called {verdict} and its gates say {expected}"


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


def _gate(
    name: str,
    value: float | None,
    limit: float,
    at: str,
    reason: str,
    interval: Ends | None,
    cure: str,
) -> Gate:
    known = value is not None and math.isfinite(value)
    verdict = CANNOT_JUDGE
    if known and not reason:
        assert value is not None
        low, high = interval or (value, value)
        kept = (low >= limit, high >= limit) if at == "least" else (high <= limit, low <= limit)
        verdict = PASSED if kept[0] else CANNOT_JUDGE if kept[1] else FAILED
        if verdict == CANNOT_JUDGE:
            reason = "the 95 % interval holds values on both sides of the limit"
    cure = cure if verdict == CANNOT_JUDGE else ""
    value = value if known else None
    return Gate(name, value, limit, at, verdict == PASSED, reason, verdict, interval, cure)


def _case(suite: ElementTree.Element, command: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"fr-edge.{command}", name=name)


def _problem(case: ElementTree.Element, reason: VerdictReason) -> None:
    """FAILED as a failure, CANNOT JUDGE as an error: CI systems count both as not passed."""
    assert reason.verdict != PASSED
    tag = "failure" if reason.verdict == FAILED else "error"
    text = f"{reason.verdict}: {reason.reason}".strip()
    problem = ElementTree.SubElement(case, tag, message=text, type=reason.verdict)
    problem.text = f"{text}\n{reason.cure}" if reason.cure else text
