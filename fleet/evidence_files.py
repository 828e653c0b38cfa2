"""The files of one board's evidence: what `accept`, `doctor`, `verify`, `evaluate` and `benchmark` wrote there,
and what a roll-out noted.

A file is recognized by its content, so its name does not matter. A file that cannot be read costs the
board its verdict, not the others theirs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..documents import convert, read_json
from ..errors import DataError
from ..runtime.benchmark.frame_benchmark import FrameBenchmark
from ..runtime.benchmark.result import BenchmarkResult, BenchmarkRun
from ..runtime.compatibility import Compatibility, compatibility_of_device
from ..runtime.evaluation.gates import CANNOT_JUDGE, FAILED, PASSED, VerdictReason, overall_verdict
from ..runtime.evaluation.result import EvaluateResult, IjbResult, VerifyResult
from ..runtime.evaluation.stored_reports import Report, decode_report
from ..runtime.machine.device import Device
from .board_evidence import (
    AGAIN,
    BoardEvidence,
    BoardState,
    EngineEvidence,
    plain_text,
    state_reason,
    with_verdict,
)

_MAX_FILES = 64  # of one board

_L4T = re.compile(r"R(\d{1,3}) \(release\), REVISION: ([\d.]{1,9})")
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){1,3}")
_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}
"""Major number of L4T -> that of JetPack; developer.nvidia.com/embedded/jetpack-archive."""


@dataclass(frozen=True)
class _System:
    """What is taken of `doctor`'s document."""

    device: Device
    l4t: str = ""
    power_mode: str = ""
    cuda_driver: str = ""
    problems: tuple[str, ...] = ()
    backends: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Machine:
    system: _System | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Timed:
    runs: tuple[BenchmarkRun, ...] = ()


@dataclass(frozen=True)
class _Tried:
    """What is taken of an engine of `accept`'s file."""

    bundle: str
    precision: str
    verdict: str
    problems: tuple[str, ...] = ()
    cosine: Mapping[str, float] = field(default_factory=dict)
    benchmark: _Timed | None = None


@dataclass(frozen=True)
class _Acceptance:
    """What is taken of `accept`'s file."""

    rehearsal: bool
    backend: str
    reasons: tuple[str, ...] = ()
    machine: _Machine = _Machine()
    engines: tuple[_Tried, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Refusal:
    """What a command printed that ended with an error."""

    error: str
    exit_code: int
    hint: str = ""


def read_evidence(folder: Path) -> BoardEvidence:
    """Read all evidence of one board.

    Args:
        folder: Holds its JSON files, with the board's name as its own.

    Returns:
        The evidence; files that cannot be read are among its reasons.
    """
    board = BoardEvidence(plain_text(folder.name))
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        return _doubted(board, f"the folder cannot be read: {error.strerror}")
    for path in files[:_MAX_FILES]:
        try:
            if path.is_symlink():
                raise DataError(f"{path} is a link, expected a file")
            board = _with_document(board, read_json(path, Any), path)
        except DataError as error:
            text = error.message.replace(str(path), path.name)
            board = _doubted(board, f"unreadable: {text}", "fetch it from the board again")
    if len(files) > _MAX_FILES:
        board = _doubted(board, f"{len(files)} JSON files, expected {_MAX_FILES} at most")
    if not any(engine.verdict for engine in board.engines) and not board.reasons:
        board = _doubted(board, "no engine was verified", AGAIN)
    return with_verdict(board)


def _doubted(board: BoardEvidence, text: str, cure: str = "") -> BoardEvidence:
    reason = VerdictReason(CANNOT_JUDGE, plain_text(text), plain_text(cure))
    return replace(board, reasons=(*board.reasons, reason))


def _with_document(
    board: BoardEvidence, document: Any, path: Path, title: str = ""
) -> BoardEvidence:
    """The board with what one more file, or its part `title`, tells; an unknown kind tells nothing."""
    if not isinstance(document, dict):
        return board
    where = f"{path}"
    if "acceptance" in document:
        return _with_acceptance(board, convert(document, _Acceptance, where))
    if "exit_code" in document and "error" in document:
        refusal = convert(document, _Refusal, where)
        return _doubted(board, f"{title or path.stem}: {refusal.error}", refusal.hint)
    if isinstance(parts := document.get("evidence"), dict):  # what a roll-out fetched, by step
        for name, part in parts.items():
            board = _with_document(board, part, path, name)
        return board
    if "state" in document:
        state = convert(document, BoardState, where)
        system = convert(document["system"], _System, where) if document.get("system") else None
        if system:
            board = _with_system(board, system, {})
        if state.verb == "check":
            return replace(board, plan=_plan(system)) if system else board
        if (
            state.verb == "roll-back"
        ):  # one that failed leaves the board and its evidence as they were
            text = "rolled back: this evidence is of the release that was left"
            return (
                _doubted(board, text, "roll another bundle out") if state.state == "done" else board
            )
        reason = state_reason(state)
        board = replace(board, bundle=plain_text(state.bundle))
        return replace(board, reasons=(*board.reasons, reason)) if reason else board
    if "backends" in document and "device" in document:
        return _with_system(board, convert(document, _System, where), {})
    report = decode_report(document, path)
    return board if report is None else _with_report(board, report)


def _with_report(board: BoardEvidence, report: Report) -> BoardEvidence:
    """What a report tells; figures are taken of `verify`, `evaluate` and `benchmark` on faces."""
    engine, verdict = _engine(board, report.engine, report.backend), ""
    reasons: tuple[VerdictReason, ...] = ()
    if isinstance(report, VerifyResult):
        verdict = report.verdict or (PASSED if report.passed else FAILED)
        engine = replace(engine, cosine=report.golden.engine.min, **_verified_rate(report))
    elif isinstance(report, BenchmarkResult):
        verdict = report.gates_verdict or ""
        cosine = report.golden_min_cosine if engine.cosine is None else engine.cosine
        engine = replace(engine, cosine=cosine, **_timing(report.runs))
    elif isinstance(report, EvaluateResult | IjbResult):
        verdict = report.verdict or ""
        engine = replace(engine, **_evaluated_rate(report))
    elif not isinstance(report, FrameBenchmark):
        verdict = report.verdict
    if not isinstance(report, FrameBenchmark):  # has no gates
        reasons = report.reasons
    if isinstance(report, VerifyResult | BenchmarkResult):
        board = _with_device(board, report.device, report.backend)
    if report.provenance:
        files = report.provenance.files.items()
        models = {plain_text(name): sha for name, sha in files if name.startswith("model")}
        engine = replace(engine, models={**engine.models, **models})
    board = _with_engine(board, engine, verdict)
    return _with_reasons(board, f"{engine.precision} on {engine.backend}", reasons)


def _with_acceptance(board: BoardEvidence, acceptance: _Acceptance) -> BoardEvidence:
    """The user's engines, else the sample's; where an engine has a report, its figures are the report's."""
    if acceptance.machine.system:
        board = _with_system(board, acceptance.machine.system, acceptance.machine.libraries)
    kinds = {tried.bundle for tried in acceptance.engines}
    for tried in acceptance.engines:
        texts = tried.problems or ((tried.verdict,) if tried.verdict != PASSED else ())
        reasons = [VerdictReason(_verdict(tried.verdict), text) for text in texts]
        title = f"acceptance, {tried.bundle} {tried.precision}"
        board = _with_reasons(board, title, reasons)
        engine = _engine(board, tried.precision, acceptance.backend)
        if tried.bundle != ("yours" if "yours" in kinds else "sample") or engine.verdict:
            continue
        runs = tried.benchmark.runs if tried.benchmark else ()
        engine = replace(engine, cosine=tried.cosine.get("min", engine.cosine), **_timing(runs))
        # A rehearsal on the CPU says nothing of a board.
        board = _with_engine(board, engine, "" if acceptance.rehearsal else tried.verdict)
    doubted = [f"not done yet: {', '.join(acceptance.left)}"] if acceptance.left else []
    doubted += acceptance.reasons if not acceptance.engines else ()
    doubts = [VerdictReason(CANNOT_JUDGE, text, AGAIN) for text in doubted]
    return _with_reasons(board, "acceptance", doubts)


def _with_system(
    board: BoardEvidence, system: _System, libraries: Mapping[str, str]
) -> BoardEvidence:
    device = system.device
    tensorrt = libraries.get("tensorrt") or device.packages.get("tensorrt", "")
    return replace(
        board,
        kind=_kind(device.jetson, device.gpu, device.cpu) or board.kind,
        jetpack=_jetpack(system.l4t) or board.jetpack,
        tensorrt=plain_text(tensorrt) or board.tensorrt,
        driver=plain_text(system.cuda_driver) or board.driver,
        power_mode=plain_text(system.power_mode) or board.power_mode,
        backends=tuple(plain_text(n) for n, s in system.backends.items() if s.get("ready") is True)
        or board.backends,
        problems=tuple(map(plain_text, system.problems)) or board.problems,
    )


def _plan(system: _System) -> Compatibility | None:
    tensorrt = system.device.packages.get("tensorrt", "")
    cuda = system.cuda_driver if _VERSION.fullmatch(system.cuda_driver) else ""
    python = system.device.python if _VERSION.fullmatch(system.device.python) else ""
    return compatibility_of_device(replace(system.device, python=python), tensorrt, cuda)


def _with_device(board: BoardEvidence, device: Mapping[str, Any], backend: str) -> BoardEvidence:
    """What a report tells of the machine, where neither `doctor` nor `accept` did."""
    if board.kind:
        return board
    names, packages = device.get("gpu"), device.get("packages")
    gpus = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    kind = _kind(str(device.get("jetson") or ""), gpus, str(device.get("cpu") or ""))
    version = packages.get("tensorrt", "") if isinstance(packages, dict) else ""
    return replace(board, kind=kind, tensorrt=board.tensorrt or plain_text(str(version)))


def _kind(jetson: str, gpus: Sequence[str], cpu: str) -> str:
    return plain_text(jetson or ", ".join(gpus) or cpu)


def _jetpack(l4t: str) -> str:
    match = _L4T.search(l4t)
    if match is None:
        return ""
    major = _JETPACKS.get(int(match[1]))
    number = f"L4T {match[1]}.{match[2]}"
    return f"JetPack {major}, {number}" if major else number


def _engine(board: BoardEvidence, precision: str, backend: str) -> EngineEvidence:
    """What is known so far of an engine."""
    key = plain_text(precision), plain_text(backend)
    known = (e for e in board.engines if (e.precision, e.backend) == key)
    return next(known, EngineEvidence(*key))


def _with_engine(board: BoardEvidence, engine: EngineEvidence, verdict: str) -> BoardEvidence:
    """Put an engine in the place of what was known of it; all verdicts about it count."""
    key = engine.precision, engine.backend
    others = tuple(e for e in board.engines if (e.precision, e.backend) != key)
    verdicts = [_verdict(v) for v in (engine.verdict, verdict) if v]
    engine = replace(engine, verdict=overall_verdict(verdicts) if verdicts else "")
    return replace(board, engines=(*others, engine))


def _verdict(text: str) -> str:
    return text if text in (PASSED, FAILED) else CANNOT_JUDGE


def _with_reasons(
    board: BoardEvidence, title: str, reasons: Iterable[VerdictReason]
) -> BoardEvidence:
    named = tuple(
        VerdictReason(_verdict(r.verdict), plain_text(f"{title}: {r.reason}"), plain_text(r.cure))
        for r in reasons
        if r.verdict != PASSED
    )
    return replace(board, reasons=(*board.reasons, *named))


def _verified_rate(report: VerifyResult) -> dict[str, Any]:
    """TAR at the FAR that the pairs hold solidly, else at the first that they show."""
    rates = {far: rate for far, rate in report.tar.items() if rate.engine is not None}
    far = report.strata_far if report.strata_far in rates else next(iter(rates), None)
    if far is None:
        return {}
    interval = rates[far].interval_95
    return _rate(far, rates[far].engine, interval.engine if interval else None)


def _evaluated_rate(report: EvaluateResult | IjbResult) -> dict[str, Any]:
    """TAR at the smallest FAR that has an interval, else at the first that the pairs show."""
    rates = {far: tar for far, tar in report.tar_at_far.items() if tar is not None}
    solid = [far for far in rates if far in report.interval_95_at_far]
    far = next(iter(solid or rates), None)
    return {} if far is None else _rate(far, rates[far], report.interval_95_at_far.get(far))


def _rate(far: str, tar: float | None, interval: tuple[float, float] | None) -> dict[str, Any]:
    return {"far": plain_text(far), "tar": tar, "tar_interval_95": interval}


def _timing(runs: Sequence[BenchmarkRun]) -> dict[str, Any]:
    """The figures of the smallest batch, one after the other."""
    if not runs:
        return {}
    run = min(runs, key=lambda run: (run.rate is not None, run.streams, run.batch))
    trace = run.board
    return {
        "p50_ms": run.latency_ms.get("p50"),
        "p99_ms": run.latency_ms.get("p99"),
        "timing": "VALID" if run.verdict == "VALID" else "INVALID",
        "energy_mj": run.energy.mj_per_face if run.energy else None,
        "memory_mb": _highest(trace.memory_mb, "process") if trace else None,
        "temperature_c": _highest(trace.temperature_c) if trace else None,
        "throttled": tuple(map(plain_text, trace.throttled)) if trace else (),
        "power_mode": plain_text(", ".join(trace.power_mode)) if trace else "",
    }


def _highest(spans: Mapping[str, tuple[float, float]], name: str = "") -> float | None:
    """The upper end of a sensor's span, else the highest of all."""
    if name in spans:
        return spans[name][1]
    return max((high for _, high in spans.values()), default=None)
