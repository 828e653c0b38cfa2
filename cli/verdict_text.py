"""What a verdict is about and why, for the terminal and as JUnit XML: `verify`, `evaluate`, `benchmark`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .output import table

if TYPE_CHECKING:
    from ..runtime.evaluation.gates import Gate, VerdictReason
    from ..runtime.evaluation.result import EvaluateResult, IjbResult, OpenedFile, VerifyResult


def artifact_text(artifact: "OpenedFile | None", backend: str) -> str:
    """What was judged: the engine, or the graph with every rounding."""
    if artifact is None:
        return ""
    file = f"{artifact.file} (sha256 {artifact.sha256[:12]})"
    if artifact.kind == "engine":
        by = f", by {artifact.execution}" if artifact.execution else ""
        return f"judged: the engine {file} on {backend}{by}"
    return f"judged: the graph {file} with every rounding, on {backend}; not an engine"


def verdict_text(verdict: str, judged: str) -> str:
    """A verdict on a graph never looks like one on an engine."""
    return f"{verdict}, of the graph, not of an engine" if judged == "graph" else verdict


_SHORT = {"PASSED": "pass", "FAILED": "FAIL", "CANNOT JUDGE": "????"}


def gates_text(gates: "Sequence[Gate]") -> str:
    """A line for each gate."""
    rows = [
        [
            _SHORT[gate.verdict],
            gate.name,
            "not measured" if gate.value is None else f"{gate.value:.5f}",
            "" if gate.interval_95 is None else "{:.5f} to {:.5f}".format(*gate.interval_95),
            f"at {gate.at} {gate.limit:g}",
        ]
        for gate in gates
    ]
    return table(rows)


def reason_lines(reasons: "Sequence[VerdictReason]") -> Iterator[str]:
    """Why a verdict is not PASSED, and what to do."""
    for reason in reasons:
        yield f"{reason.verdict}: {reason.reason}"
        if reason.cure:
            yield f"  cure: {reason.cure}"


def failure_text(verdict: str | None, reasons: "Sequence[VerdictReason]") -> str:
    """A verdict that is not PASSED, with its own reasons in one line.

    Args:
        verdict: "FAILED" or "CANNOT JUDGE".
        reasons: Of that verdict and of weaker ones.
    """
    return f"{verdict}: {'; '.join(r.reason for r in reasons if r.verdict == verdict)}"


def judged_title(result: "VerifyResult | EvaluateResult | IjbResult", judged_on: str) -> str:
    """The name of a JUnit test suite.

    Args:
        result: With engine and backend.
        judged_on: The faces or the protocol.
    """
    graph = " graph, not an engine," if result.judged == "graph" else ""
    return f"{result.engine}{graph} on {result.backend}, {judged_on}"


def write_junit(
    path: str | None,
    command: str,
    title: str,
    gates: "Sequence[Gate]",
    reasons: "Sequence[VerdictReason]",
    not_measured: Sequence[str],
) -> None:
    """Write what `--junit` asked for.

    Args:
        path: As `--junit` takes it; nothing is written for None.
        command: "verify", "evaluate" or "benchmark".
        title: Name of the test suite.
        gates: Judged ones.
        reasons: Of the verdict.
        not_measured: In words.
    """
    from ..files import write_atomic
    from ..runtime.evaluation.gates import junit_xml

    if path:
        text = junit_xml(command, title, gates, reasons, not_measured)
        write_atomic(Path(path), text.encode())
