"""`compare`: two bundles, or two reports, side by side: what changed, and is it more than chance?

Two runs are compared, not faces one by one: a difference counts where the 95 % intervals do not
touch. What makes the two incomparable (another machine, version, protocol) is said first.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from ...bundle.bundle import open_bundle
from ...errors import DataError, UsageError
from ..benchmark.result import run_label
from .gates import Gate

Ends = tuple[float, float]

_T9 = 2.262
"""Student's t for 95 % and ten folds."""

_PER_SECOND = " faces per second"

_KINDS = {"gates": "verify", "tar_at_far": "evaluate", "runs": "benchmark"}
"""The key that tells a report's kind."""

_MADE = ("model.pt", "model.onnx", "model.fp16.onnx", "calibration.json", "model.int8.onnx")


@dataclass(frozen=True)
class Figure:
    """One number of a report; `interval` where it is known, `up` if more is better."""

    value: float
    interval: Ends | None
    up: bool


@dataclass(frozen=True)
class FigureChange:
    """The same figure of both sides."""

    name: str
    first: Figure
    second: Figure

    @property
    def relative(self) -> float:
        """Second over first, minus one."""
        return self.second.value / self.first.value - 1 if self.first.value else 0.0

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `within noise`, `equal`, or `unsure` where an interval is missing."""
        if self.first.value == self.second.value:
            return "equal"
        one, other = self.first.interval, self.second.interval
        if one is None or other is None:
            return "unsure"
        if max(one[0], other[0]) <= min(one[1], other[1]):
            return "within noise"
        rose = self.second.value > self.first.value
        return "better" if rose == self.first.up else "worse"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "first": self.first.value,
            "second": self.second.value,
            "first_interval_95": self.first.interval,
            "second_interval_95": self.second.interval,
            "difference": round(self.second.value - self.first.value, 6),
            "relative": round(self.relative, 6),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class CompareResult:
    """`differences` are what the two do not share besides their figures."""

    first: str
    second: str
    differences: tuple[str, ...]
    changes: tuple[FigureChange, ...]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "first": self.first,
            "second": self.second,
            "differences": list(self.differences),
            "changes": [change.to_json() for change in self.changes],
            "gates": [gate.to_json() for gate in self.gates],
        }


def compare(first: Path, second: Path, max_regression: float | None = None) -> CompareResult:
    """Compare bundles (all reports that both have) or single report files of one kind.

    With `max_regression`, a fraction, each latency's median that rose by more, beyond noise, fails
    its gate. Raises UsageError when the two have no figure in common, DataError for a file that is
    no report.
    """
    if max_regression is not None and not 0 <= max_regression < float("inf"):
        raise UsageError(
            f"max_regression is a fraction, 0 or more, found {max_regression}", "0.05 is 5 %"
        )
    one, other = _reports(first), _reports(second)
    if len(one) == len(other) == 1 and next(iter(one))[0] == next(iter(other))[0]:
        pairs = [(next(iter(one))[0], next(iter(one.values())), next(iter(other.values())))]
    else:
        pairs = [(" ".join(key), one[key], other[key]) for key in sorted(set(one) & set(other))]
    differences = [*_bundles(first, second)]
    for label, a, b in pairs:
        differences += [*_differences(label, a, b), *_unshared(label, a, b)]
    changes = [
        FigureChange(f"{label}: {name}", figure, theirs[name])
        for label, a, b in pairs
        for theirs in [dict(_figures(b))]
        for name, figure in _figures(a)
        if name in theirs
    ]
    if not changes:
        raise UsageError(
            f"{first} and {second} have no figure in common",
            "run the same of verify, evaluate and benchmark on both",
        )
    gates = [] if max_regression is None else list(_gates(changes, max_regression))
    return CompareResult(str(first), str(second), tuple(differences), tuple(changes), tuple(gates))


def _reports(path: Path) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """`(kind, engine)`, with the protocol's name and flags where it has some -> report."""
    if path.is_dir():
        bundle = open_bundle(path)
        files = [bundle.root / name for name in bundle.files if name.startswith("reports/")]
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"there is no bundle or report at {path}")
    found = {}
    for file in files:
        report = _read(file)
        kind = next((kind for key, kind in _KINDS.items() if key in report), None)
        if kind is not None:
            protocol = report.get("protocol")
            about = protocol if isinstance(protocol, dict) else {}
            told = (about.get("name"), about.get("flags"), "flip" if about.get("flip") else None)
            found[(kind, str(report.get("engine")), *(str(t) for t in told if t))] = report
    if not found and path.is_file():
        raise DataError(
            f"{path} is no report of fr-edge", "reports are in BUNDLE/reports, or from --json"
        )
    return found


def _read(file: Path) -> Mapping[str, Any]:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a report: {error}") from error
    return report if isinstance(report, dict) else {}


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The report's numbers; raises DataError where they are not what fr-edge writes."""
    try:
        if "gates" in report:
            yield from _verified(report)
        elif "runs" in report:
            yield from _timed(report)
        else:
            yield from _evaluated(report)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"a report lacks {error}", "make it again with this fr-edge") from error


def _verified(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    for name in ("min", "p1", "mean"):
        yield f"cosine {name}", Figure(float(report["cosine"][name]), None, True)
    for far, rate in report["tar"].items():
        if rate["engine"] is not None:
            ends = (rate.get("interval_95") or {}).get("engine")
            yield f"TAR at {far}", Figure(rate["engine"], ends and (ends[0], ends[1]), True)


def _evaluated(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    if "accuracy" in report:  # IJB has none
        mean = report["accuracy"]
        half = _T9 * report["accuracy_std"] / sqrt(max(1, report["folds"]))
        yield "accuracy", Figure(mean, (mean - half, min(1.0, mean + half)), True)
        yield "EER", Figure(report["eer"], None, False)
    for far, tar in report["tar_at_far"].items():
        if tar is not None:
            ends = report.get("interval_95_at_far", {}).get(far)
            yield f"TAR at {far}", Figure(tar, ends and (ends[0], ends[1]), True)


def _timed(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    for run in report["runs"]:
        setting = run_label(run)
        for name in ("p50", "p90", "p99"):
            if run["latency_ms"][name] is not None:
                ends = run["interval_95_ms"][name]
                figure = Figure(run["latency_ms"][name], ends and (ends[0], ends[1]), False)
                yield f"{setting} {name} ms", figure
        yield f"{setting}{_PER_SECOND}", Figure(run["throughput_per_s"], None, True)


def _unshared(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """A benchmark's settings that only one side ran."""
    first, second = dict(_figures(one)), dict(_figures(other))
    for side, own, theirs in (("first", first, second), ("second", second, first)):
        for name in own:
            if name.endswith(_PER_SECOND) and name not in theirs:
                yield f"{label}: {name.removesuffix(_PER_SECOND)} was run in the {side} only"


def _differences(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in ("engine", "backend", "fr_edge", "faces", "protocol", "timed"):
        if one.get(key) != other.get(key):
            yield f"{label}: {key} {_plain(one.get(key))} and {_plain(other.get(key))}"
    here, there = one.get("device") or {}, other.get("device") or {}
    for key in sorted(set(here) | set(there)):
        if here.get(key) != there.get(key):
            yield f"{label}: {key} {_plain(here.get(key))} and {_plain(there.get(key))}"
    for side, report in (("first", one), ("second", other)):
        if report.get("verdict") == "INVALID":
            yield f"{label}: the {side} is INVALID, its figures mean nothing"


def _bundles(first: Path, second: Path) -> Iterator[str]:
    """What two bundles do not share, whatever was measured on them."""
    if not (first.is_dir() and second.is_dir()):
        return
    one, other = open_bundle(first, check="manifest"), open_bundle(second, check="manifest")
    if one.spec != other.spec:
        yield f"contract: {one.spec.describe()} and {other.spec.describe()}"
    if one.embedding_dim != other.embedding_dim:
        yield f"embedding: {one.embedding_dim} and {other.embedding_dim} numbers"
    for name in _MADE:
        if name in one and name in other and one.files[name] != other.files[name]:
            yield f"{name}: not the same"
        elif (name in one) != (name in other):
            yield f"{name}: in {first if name in one else second} only"


def _gates(changes: list[FigureChange], limit: float) -> Iterator[Gate]:
    for change in changes:
        if change.name.endswith("p50 ms"):
            rose = max(0.0, change.relative) if change.verdict == "worse" else 0.0
            yield Gate(f"{change.name}: rise beyond noise", rose, limit, most=True)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
