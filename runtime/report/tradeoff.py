"""Size, speed and true accept rate of a bundle's engines side by side: which of them is worth shipping."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineFigures:
    """What is known of one engine.

    Attributes:
        file: The engine's path in the bundle.
        precision: `fp32`, `fp16`, `fp8` or `int8`.
        backend: What runs it.
        size_mb: Of its file, in MB (1e6 bytes).
        p50_ms: Median latency; None where it was not timed.
        valid: Whether the benchmark calls itself VALID; None where it was not timed.
        verdict: Of `verify` that measured the rate; empty where it was not measured.
        tar: True accept rate as a fraction; None where it was not measured.
        change: Of the true accept rate against the reference, as a fraction.
        interval_95: 95 % interval of the change.
    """

    file: str
    precision: str
    backend: str
    size_mb: float
    p50_ms: float | None = None
    valid: bool | None = None
    verdict: str = ""
    tar: float | None = None
    change: float | None = None
    interval_95: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """`INT8 on onnxruntime`."""
        return f"{self.precision.upper()} on {self.backend}"

    @property
    def costs(self) -> tuple[float, ...]:
        """Size, latency and what is missing of the rate; empty for an engine that is not placed."""
        if self.not_placed or self.p50_ms is None or self.tar is None:
            return ()
        return self.size_mb, self.p50_ms, 1 - self.tar

    @property
    def not_placed(self) -> str:
        """Why the engine is no choice: a figure is missing or cannot be trusted, or `verify` did not
        pass it; empty for one that is compared with the others."""
        if self.p50_ms is None:
            return "not timed"
        if not self.valid:
            return "its benchmark is INVALID"
        if self.tar is None:
            return "not verified" if not self.verdict else "its TAR is not measured"
        return "" if self.verdict == "PASSED" else f"verify: {self.verdict}"

    @property
    def complete(self) -> bool:
        """Whether all three figures are there and can be trusted."""
        return bool(self.costs)


@dataclass(frozen=True)
class Tradeoff:
    """Engines that were judged on the same faces and timed in the same setting.

    Attributes:
        engines: The engines, with what is known of each.
        far: The false accept rate of `EngineFigures.tar`; None where no rate was measured.
        faces: Name of the faces.
        setting: Of the benchmark, such as `batch 1`; empty where nothing was timed.
    """

    engines: tuple[EngineFigures, ...]
    far: str | None
    faces: str
    setting: str

    @property
    def plotted(self) -> tuple[EngineFigures, ...]:
        """Engines with a latency and a rate, whether or not the latency can be trusted."""
        return tuple(e for e in self.engines if e.p50_ms is not None and e.tar is not None)

    def better_than(self, engine: EngineFigures) -> EngineFigures | None:
        """An engine that is at least as small, as fast and as accurate, and better in one of them.

        Args:
            engine: One of `engines`.

        Returns:
            The fastest of such engines; None for an engine without such: it is on the Pareto front.
        """
        costs = [e.costs for e in self.engines]
        better = [self.engines[i] for i in surpassing(costs, self.engines.index(engine))]
        return min(better, key=lambda e: e.costs[1], default=None)


def surpassing(costs: Sequence[Sequence[float]], index: int) -> list[int]:
    """Which rows are nowhere worse than one row and somewhere better; it is on the Pareto front where
    there are none.

    Args:
        costs: The figures of each row, the smaller the better; a row without figures is no choice.
        index: Of the row in question.
    """
    own = costs[index]
    return [
        at
        for at, row in enumerate(costs)
        if row and own and row != own and all(a <= b for a, b in zip(row, own, strict=True))
    ]


def compare_engines(
    engines: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    verified: Sequence[Mapping[str, Any]],
    timed: Sequence[Mapping[str, Any]],
) -> Tradeoff | None:
    """Put the figures of the bundle's engines side by side.

    Args:
        engines: Fingerprints with the engine's `file`.
        sizes: File -> bytes.
        verified: Reports of `verify` as the page has them, those of most faces first.
        timed: Reports of `benchmark` as the page has them.

    Returns:
        None where no two engines have a latency or a rate: there is nothing to compare.
    """
    judged = [row for row in verified if _of_an_engine(row) and row["headline"]]
    subjects = Counter((row["name"], row["headline_far"]) for row in judged)
    name, far = max(subjects, key=lambda subject: subjects[subject], default=("", None))
    rates: dict[str, Any] = {}
    verdicts: dict[str, str] = {}
    for row in judged:
        rate = row["tar"].get(far)
        if row["name"] == name and rate is not None and rate.delta is not None:
            if row["artifact"].file not in rates:
                verdicts[row["artifact"].file] = row["verdict"]
            rates.setdefault(row["artifact"].file, rate)
    runs = [
        (row["artifact"].file, run) for row in timed if _of_an_engine(row) for run in row["runs"]
    ]
    settings = Counter(run.setting.label for _, run in runs)
    setting = max(settings, key=lambda label: settings[label], default="")
    times = {file: run for file, run in reversed(runs) if run.setting.label == setting}
    if max(len(rates), len(times)) < 2:
        return None
    rows = []
    for engine in engines:
        if engine.get("role"):
            continue  # a detector
        file = engine["file"]
        rate, run = rates.get(file), times.get(file)
        interval = rate.interval_95.delta if rate and rate.interval_95 else None
        rows.append(
            EngineFigures(
                file,
                engine["precision"],
                engine["backend"],
                sizes[file] / 1e6,
                run.latency_ms.get("p50") if run else None,
                run.verdict == "VALID" if run else None,
                verdicts.get(file, ""),
                rate.engine if rate else None,
                rate.delta if rate else None,
                interval,
            )
        )
    rows.sort(key=lambda row: (row.p50_ms is None, row.p50_ms or 0.0, row.file))
    return Tradeoff(tuple(rows), far, name, setting)


def _of_an_engine(row: Mapping[str, Any]) -> bool:
    return row["artifact"] is not None and row["artifact"].kind == "engine"
