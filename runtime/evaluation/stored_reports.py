"""The reports that a bundle keeps: read, upgraded from earlier versions, and judged for whether each
still speaks of the files that the bundle holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...bundle.derived import PAGE, is_report, stale_reports
from ...bundle.manifest import Bundle
from ...bundle.provenance import foreign_reason
from ...documents import convert, read_json
from ...errors import DataError
from ..benchmark.frame_benchmark import FrameBenchmark
from ..benchmark.result import BENCHMARK_SCHEMA, BenchmarkResult
from ..fingerprint import PRECISIONS
from .gates import contradiction
from .photograph_result import PhotographResult
from .result import REPORT_SCHEMA, EvaluateResult, IjbResult, VerifyResult

Report = (
    VerifyResult | EvaluateResult | IjbResult | BenchmarkResult | PhotographResult | FrameBenchmark
)


@dataclass(frozen=True)
class StoredReport:
    """A report of a bundle.

    Attributes:
        file: Path within the bundle.
        report: Its content.
        stale: Why it does not speak of the bundle's present files, "" where it does.
    """

    file: str
    report: Report
    stale: str


@dataclass(frozen=True)
class ReportRow:
    """One report of a bundle at a glance, with the shape of its JSON document.

    Attributes:
        file: Path within the bundle.
        kind: "verify", "evaluate" or "benchmark".
        verdict: "PASSED", "VALID", ...; of an evaluation without gates its accuracy, of a benchmark with
            gates "VALID, FAILED" and the like.
        engine: The precision.
        judged: "engine" or "graph".
        protocol: The name of what it was judged on.
        faces: What that holds, in words.
        stale: Why it does not speak of the bundle's present files, "" where it does.
    """

    file: str
    kind: str
    verdict: str
    engine: str
    backend: str
    judged: str
    protocol: str
    faces: str
    stale: str


def list_reports(bundle: Bundle) -> tuple[ReportRow, ...]:
    """Summaries of the bundle's reports, and whether each still speaks of the files that the bundle holds.

    Args:
        bundle: An open bundle.

    Raises:
        DataError: A report is damaged.
    """
    return tuple(map(_row, read_reports(bundle)))


def read_reports(bundle: Bundle) -> Iterator[StoredReport]:
    """Read the bundle's reports of `verify`, `evaluate` and `benchmark`.

    Args:
        bundle: An open bundle.

    Raises:
        DataError: A report is damaged.
    """
    stale = stale_reports(bundle)
    for name in filter(is_report, bundle.files):
        if name == PAGE:
            continue
        path = bundle.file(name)
        report = read_report(path)
        if report is None:
            continue
        if report.engine not in PRECISIONS:
            raise DataError(f"{path} is damaged: there is no engine {report.engine!r}")
        reason = stale.get(name, "")
        if report.provenance is not None and not (reason and bundle.files[name].of):
            reason = foreign_reason(report.provenance, bundle) or reason
        yield StoredReport(name, report, reason)


def read_report(path: Path) -> Report | None:
    """Read a report of `verify`, `evaluate` or `benchmark`.

    Args:
        path: A JSON file.

    Returns:
        The report; None for JSON of another kind.

    Raises:
        DataError: The file cannot be read or is damaged.
    """
    return decode_report(read_json(path, Any), path)


def decode_report(document: Any, path: Path) -> Report | None:
    """A report of `verify`, `evaluate` or `benchmark` from its JSON document.

    Args:
        document: JSON types; parts of earlier versions are renamed in place.
        path: Where it comes from, for the error.

    Returns:
        The report; None for JSON of another kind.

    Raises:
        DataError: It is damaged.
    """
    if not isinstance(document, dict):
        return None
    kinds: dict[str, type[Report]] = {
        "detection": PhotographResult,
        "frames": FrameBenchmark,
        "cosine": VerifyResult,
        "runs": BenchmarkResult,
        "accuracy": EvaluateResult,
        "tar_at_far": IjbResult,
    }
    kind = next((kind for key, kind in kinds.items() if key in document), None)
    if kind is None or "curve" in document:  # a training has an accuracy too
        return None
    known = BENCHMARK_SCHEMA if kind in (BenchmarkResult, FrameBenchmark) else REPORT_SCHEMA
    schema = document.get("schema", known)  # verifications and evaluations of 0.1 have none
    if isinstance(schema, int) and schema > known:
        raise DataError(
            f"{path} has schema {schema}, this fr-edge {__version__} reads up to {known}",
            "upgrade fr-edge",
        )
    for part in (document.get("faces"), document.get("protocol")):
        if isinstance(part, dict) and "drawn" in part:  # the word of earlier versions
            part["synthetic"] = part.pop("drawn")
    try:
        if kind is VerifyResult:
            _upgrade(document)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    report = convert(document, kind, f"{path} is damaged")
    if isinstance(report, FrameBenchmark):
        return report
    verdict = report.gates_verdict if isinstance(report, BenchmarkResult) else report.verdict
    if verdict and (problem := contradiction(verdict, report.gates, report.reasons)):
        raise DataError(f"{path} is damaged: {problem}", "run its command again")
    return report


def _upgrade(document: dict[str, Any]) -> None:
    """Move what earlier versions wrote elsewhere in a verification."""
    for part in (document, document.get("teacher")):
        for key in ("tar", "mixed_gallery"):
            rates = part.get(key) if isinstance(part, dict) else None
            for far, rate in rates.items() if isinstance(rates, dict) else ():
                if isinstance(rate, dict):
                    rate.setdefault("far", float(far))
    golden = document.get("golden")
    for cosine in (
        document.get("cosine"),
        golden.get("engine") if isinstance(golden, dict) else None,
    ):
        if isinstance(cosine, dict):
            cosine.setdefault("worst", document.get("worst", []))


def _row(stored: StoredReport) -> ReportRow:
    report = stored.report
    protocol, faces = "golden", ""
    if isinstance(report, VerifyResult):
        kind, verdict = "verify", report.verdict or ("PASSED" if report.passed else "FAILED")
        protocol, faces = report.name, f"{report.cosine.faces} golden faces"
        if on := report.faces:
            pairs = f", {on.genuine_pairs} + {on.impostor_pairs} pairs" if on.genuine_pairs else ""
            faces = f"{on.count} {_real(on.synthetic)}faces of {on.identities} people{pairs}"
    elif isinstance(report, PhotographResult):
        kind, verdict, protocol = "verify", report.verdict, report.name
        people = report.faces.identities if report.faces else 0
        faces = f"{report.photographs.compared} photographs of {people} people"
    elif isinstance(report, FrameBenchmark):
        kind, verdict, protocol = "benchmark", report.verdict, "frames"
        faces = f"frames of {', '.join(str(run.faces) for run in report.frames)} faces"
    elif isinstance(report, BenchmarkResult):
        kind, verdict = "benchmark", ", ".join(filter(None, (report.verdict, report.gates_verdict)))
        faces = "batch " + ", ".join(dict.fromkeys(str(run.batch) for run in report.runs))
    else:
        kind, protocol = "evaluate", report.protocol.name
        pairs = f"{report.pairs.genuine} + {report.pairs.impostor} pairs"
        if isinstance(report, IjbResult):
            verdict = report.verdict or "-"
            faces = f"{report.protocol.templates} templates, {pairs}"
        else:
            on_people = report.protocol
            verdict = report.verdict or f"{100 * report.accuracy:.2f} %"
            faces = f"{on_people.faces} {_real(on_people.synthetic)}faces of {on_people.identities}"
            faces += f" people, {pairs}"
    judged = report.artifact.kind if report.artifact else ""
    return ReportRow(
        stored.file,
        kind,
        verdict,
        report.engine,
        report.backend,
        judged,
        protocol,
        faces,
        stored.stale,
    )


def _real(synthetic: bool) -> str:
    return "synthetic " if synthetic else ""
