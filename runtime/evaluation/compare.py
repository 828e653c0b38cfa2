"""`compare`: two bundles, or two reports, side by side: what changed, and is it more than chance?

A difference counts where the 95 % intervals do not overlap. What makes the two incomparable
(another machine, version, protocol) is listed first.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...documents import to_builtins
from ...errors import DataError, UsageError
from ..benchmark.frame_benchmark import FrameBenchmark
from ..benchmark.result import BenchmarkResult
from .gates import Gate, ceiling_gate
from .photograph_result import PhotographResult
from .result import EvaluateResult, IjbResult, VerifyResult
from .stored_reports import Report, read_report, read_reports

Ends = tuple[float, float]

_LEFT_OUT = ", so it is left out"
_MEDIAN = "p50 ms"  # a figure's name ends so
_THROUGHPUT = " faces per second"
_MADE = (
    *("model.pt", "model.onnx", "model.fp16.onnx"),
    *("calibration.json", "model.int8.onnx", "calibration.fp8.json", "model.fp8.onnx"),
)
_CONDITIONS = ("engine", "backend", "artifact", "fr_edge", "faces", "protocol", "timed")


@dataclass(frozen=True)
class FigureChange:
    """The same figure of both sides, with the shape of its JSON document.

    Attributes:
        difference: Second minus first.
        relative: Second over first, minus one.
        verdict: "better", "worse", "within noise", "equal", or "unsure" where an interval is
            missing.
    """

    name: str
    first: float
    second: float
    first_interval_95: Ends | None
    second_interval_95: Ends | None
    difference: float
    relative: float
    verdict: str


@dataclass(frozen=True)
class CompareResult:
    """Two sides compared, with the shape of its JSON document.

    Attributes:
        passed: Whether all gates passed.
        first: The first side's name.
        second: The second side's name.
        differences: What the two do not share besides their figures, in words.
        changes: Figures that both have.
        gates: Of latencies, where a limit was given.
    """

    passed: bool
    first: str
    second: str
    differences: tuple[str, ...]
    changes: tuple[FigureChange, ...]
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class _Figure:
    value: float
    interval: Ends | None
    more_is_better: bool


def compare(first: Path, second: Path, max_regression: float | None = None) -> CompareResult:
    """Compare bundles (all reports that both have) or two report files of one kind.

    Reports that do not speak of a bundle's present files are left out, and named.

    Args:
        first: A bundle or a report.
        second: The same.
        max_regression: A fraction: a latency's median that rose by more, beyond noise, fails its
            gate; None for no gates.

    Raises:
        UsageError: The two have no figure in common, or the limit is impossible.
        DataError: A file is not a report of fr-edge, or is damaged.
    """
    (a, left_out_a), (b, left_out_b) = _reports(first), _reports(second)
    differences = [*_bundle_differences(first, second)]
    differences += [f"first: {text}" for text in left_out_a]
    differences += [f"second: {text}" for text in left_out_b]
    return _compare(str(first), str(second), _paired(a, b), differences, max_regression)


def compare_reports(
    first: Report,
    second: Report,
    names: tuple[str, str],
    max_regression: float | None = None,
) -> CompareResult:
    """Compare two reports of one kind.

    Args:
        first: A result, or a report that was read.
        second: The same.
        names: What the two are called.
        max_regression: As `compare`.

    Raises:
        UsageError: The two have no figure in common, or the limit is impossible.
    """
    pairs = [(_kind(first), first, second)] if _kind(first) == _kind(second) else []
    return _compare(*names, pairs, [], max_regression)


def _compare(
    first: str,
    second: str,
    pairs: list[tuple[str, Report, Report]],
    differences: list[str],
    max_regression: float | None,
) -> CompareResult:
    if max_regression is not None and not 0 <= max_regression < float("inf"):
        raise UsageError(
            f"max_regression is a fraction, 0 or more, found {max_regression}", "0.05 is 5 %"
        )
    changes = []
    for label, a, b in pairs:
        differences += [*_differences(label, a, b), *_unshared(label, a, b)]
        others = dict(_figures(b))
        changes += [
            _change(f"{label}: {name}", figure, others[name])
            for name, figure in _figures(a)
            if name in others
        ]
    if not changes:
        left_out = "".join(f"; {text}" for text in differences if text.endswith(_LEFT_OUT))
        raise UsageError(
            f"{first} and {second} have no figure in common{left_out}",
            "run the same of verify, evaluate and benchmark on both",
        )
    gates = () if max_regression is None else tuple(_gates(changes, max_regression))
    passed = all(gate.passed for gate in gates)
    return CompareResult(passed, first, second, tuple(differences), tuple(changes), gates)


def _reports(path: Path) -> tuple[dict[str, Report], list[str]]:
    """File name -> report, and in words the reports of a bundle that are left out."""
    if path.is_dir():
        stored = list(read_reports(open_bundle(path)))
        current = {Path(s.file).name: s.report for s in stored if not s.stale}
        return current, [f"{s.file}: {s.stale}{_LEFT_OUT}" for s in stored if s.stale]
    if not path.is_file():
        raise DataError(f"there is no bundle or report at {path}")
    report = read_report(path)
    if report is None:
        raise DataError(
            f"{path} is no report of fr-edge", "reports are in BUNDLE/reports, or from --json"
        )
    return {path.name: report}, []


def _paired(a: dict[str, Report], b: dict[str, Report]) -> list[tuple[str, Report, Report]]:
    """Reports that belong together, with a label: of one file name, else of one protocol.

    Two files of one kind belong together whatever their engines and protocols are.
    """
    if len(a) == len(b) == 1:
        first, second = *a.values(), *b.values()
        return [(_kind(first), first, second)] if _kind(first) == _kind(second) else []
    pairs = [(_label(a[name]), a[name], b[name]) for name in a if name in b]
    rest_a = {name: report for name, report in a.items() if name not in b}
    rest_b = {name: report for name, report in b.items() if name not in a}
    unique = [Counter(map(_label, rest.values())) for rest in (rest_a, rest_b)]
    pairs += [
        (_label(one), one, two)
        for one in rest_a.values()
        for two in rest_b.values()
        if _label(one) == _label(two) and all(count[_label(one)] == 1 for count in unique)
    ]
    return sorted(pairs, key=lambda pair: pair[0])


def _kind(report: Report) -> str:
    if isinstance(report, BenchmarkResult):
        return "benchmark"
    if isinstance(report, FrameBenchmark):
        return "benchmark frames"
    if isinstance(report, PhotographResult):
        return "verify photographs"
    return "verify" if isinstance(report, VerifyResult) else "evaluate"


def _label(report: Report) -> str:
    """`verify int8 golden`: what a report is of, without the machine."""
    words = [_kind(report), report.engine]
    if isinstance(report, VerifyResult | PhotographResult):
        words.append(report.name)
    elif isinstance(report, IjbResult):
        words += [report.protocol.name, report.protocol.flags]
    elif isinstance(report, EvaluateResult):
        words += [report.protocol.name, "flip" if report.protocol.flip else ""]
    if not isinstance(report, BenchmarkResult) and report.artifact:
        words.append("graph" if report.artifact.kind == "graph" else "")
    return " ".join(filter(None, words))


def _figures(report: Report) -> Iterator[tuple[str, _Figure]]:
    if isinstance(report, VerifyResult):
        yield from _verification_figures(report)
    elif isinstance(report, BenchmarkResult):
        yield from _benchmark_figures(report)
    elif isinstance(report, FrameBenchmark):
        yield from _frame_figures(report)
    elif isinstance(report, PhotographResult):
        yield from _photograph_figures(report)
    else:
        yield from _evaluation_figures(report)


def _verification_figures(report: VerifyResult) -> Iterator[tuple[str, _Figure]]:
    cosine = report.cosine
    for name, value in (("min", cosine.min), ("p1", cosine.p1), ("mean", cosine.mean)):
        yield f"cosine {name}", _Figure(value, None, True)
    for far, rate in report.tar.items():
        if rate.engine is not None:
            ends = rate.interval_95.engine if rate.interval_95 else None
            yield f"TAR at {far}", _Figure(rate.engine, ends, True)


def _frame_figures(report: FrameBenchmark) -> Iterator[tuple[str, _Figure]]:
    for run in report.frames:
        label = f"frames of {run.faces} faces"
        for name in ("p50", "p90", "p99"):
            value = run.latency_ms.get(name)
            if value is not None:
                yield f"{label} {name} ms", _Figure(value, run.interval_95_ms.get(name), False)
        ends = run.frames_per_s_interval_95
        yield f"{label}, frames/s", _Figure(run.frames_per_s, ends, True)


def _photograph_figures(report: PhotographResult) -> Iterator[tuple[str, _Figure]]:
    drift = report.detection
    if drift.missed_share is not None:
        yield "faces missed", _Figure(drift.missed_share, drift.missed_interval_95, False)
    if drift.shift is not None:
        yield "median shift of the landmarks", _Figure(drift.shift.median, None, False)
    for far, rate in report.tar.items():
        if rate.engine is not None:
            ends = rate.interval_95.engine if rate.interval_95 else None
            yield f"TAR at {far}", _Figure(rate.engine, ends, True)


def _evaluation_figures(report: EvaluateResult | IjbResult) -> Iterator[tuple[str, _Figure]]:
    if isinstance(report, EvaluateResult):
        yield "accuracy", _Figure(report.accuracy, report.accuracy_interval_95, True)
        yield "EER", _Figure(report.eer, report.eer_interval_95, False)
    for far, tar in report.tar_at_far.items():
        if tar is not None:
            yield f"TAR at {far}", _Figure(tar, report.interval_95_at_far.get(far), True)


def _benchmark_figures(report: BenchmarkResult) -> Iterator[tuple[str, _Figure]]:
    for run in report.runs:
        label = run.setting.label
        for name in ("p50", "p90", "p99"):
            value = run.latency_ms.get(name)
            if value is not None:
                yield f"{label} {name} ms", _Figure(value, run.interval_95_ms.get(name), False)
        yield (
            f"{label}{_THROUGHPUT}",
            _Figure(run.throughput_per_s, run.throughput_interval_95, True),
        )


def _change(name: str, a: _Figure, b: _Figure) -> FigureChange:
    return FigureChange(
        name,
        a.value,
        b.value,
        a.interval,
        b.interval,
        b.value - a.value,
        b.value / a.value - 1 if a.value else 0.0,
        _verdict(a, b),
    )


def _verdict(a: _Figure, b: _Figure) -> str:
    if a.value == b.value:
        return "equal"
    if a.interval is None or b.interval is None:
        return "unsure"
    if max(a.interval[0], b.interval[0]) <= min(a.interval[1], b.interval[1]):
        return "within noise"
    return "better" if (b.value > a.value) == a.more_is_better else "worse"


def _unshared(label: str, a: Report, b: Report) -> Iterator[str]:
    """A benchmark's settings that only one side ran."""
    first, second = dict(_figures(a)), dict(_figures(b))
    for side, own, others in (("first", first, second), ("second", second, first)):
        for name in own:
            if name.endswith(_THROUGHPUT) and name not in others:
                yield f"{label}: {name.removesuffix(_THROUGHPUT)} was run in the {side} only"


def _differences(label: str, a: Report, b: Report) -> Iterator[str]:
    """Conditions that the two do not share."""
    for key in _CONDITIONS:
        one, two = to_builtins(getattr(a, key, None)), to_builtins(getattr(b, key, None))
        if one != two:
            yield f"{label}: {key} {_plain(one)} and {_plain(two)}"
    here, there = to_builtins(getattr(a, "device", {})), to_builtins(getattr(b, "device", {}))
    for key in sorted(set(here) | set(there)):
        if here.get(key) != there.get(key):
            yield f"{label}: {key} {_plain(here.get(key))} and {_plain(there.get(key))}"
    for side, report in (("first", a), ("second", b)):
        timed = isinstance(report, BenchmarkResult | FrameBenchmark)
        if timed and report.verdict == "INVALID":
            yield f"{label}: the {side} is INVALID, its figures cannot be trusted"


def _bundle_differences(first: Path, second: Path) -> Iterator[str]:
    if not (first.is_dir() and second.is_dir()):
        return
    a, b = open_bundle(first, check="manifest"), open_bundle(second, check="manifest")
    if a.spec != b.spec:
        yield f"contract: {a.spec.describe()} and {b.spec.describe()}"
    if a.embedding_dim != b.embedding_dim:
        yield f"embedding: {a.embedding_dim} and {b.embedding_dim} numbers"
    for name in _MADE:
        if name in a and name in b and a.files[name].sha256 != b.files[name].sha256:
            yield f"{name}: not the same"
        elif (name in a) != (name in b):
            yield f"{name}: in {_holder(name, a)} only"


def _holder(name: str, a: Bundle) -> str:
    return "the first" if name in a else "the second"


def _gates(changes: list[FigureChange], limit: float) -> Iterator[Gate]:
    for change in changes:
        if change.name.endswith(_MEDIAN):
            # Without intervals the medians alone decide.
            counts = change.verdict in ("worse", "unsure")
            rise = max(0.0, change.relative) if counts else 0.0
            yield ceiling_gate(f"{change.name}: rise beyond noise", rise, limit)


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        given = {key: part for key, part in value.items() if part not in ("", None)}
        if "sha256" in given:
            given["sha256"] = str(given["sha256"])[:12]
        return ", ".join(f"{key} {_plain(part)}" for key, part in given.items())
    return str(value)
