"""Percentiles and their intervals: exact on known numbers, honest on noise that lasts."""

import numpy as np
import pytest

from fr_edge.runtime.benchmark.statistics import (
    LatencyRecorder,
    latencies_of,
    latency_percentile,
    mean_latency_interval,
    percentile_interval,
    percentile_name,
)


def test_percentiles_that_the_runs_hold() -> None:
    milliseconds = np.arange(1, 201, dtype=float)
    runs = latencies_of(milliseconds)
    assert latency_percentile(runs, 50) == pytest.approx(100.5)
    assert latency_percentile(runs, 99) == pytest.approx(np.percentile(milliseconds, 99))
    assert latency_percentile(runs, 99.9) is None
    assert latency_percentile(latencies_of(np.arange(1000.0)), 99.9) is not None
    assert latency_percentile(latencies_of(milliseconds[:99]), 99) is None
    assert percentile_interval(runs, 99.9) is None
    assert [percentile_name(q) for q in (50.0, 99.9)] == ["p50", "p99.9"]


def test_an_interval_is_stated_where_the_slowest_run_bounds_it() -> None:
    """The slowest of n runs lies above p99 unless all n are below it: 0.99^n, 1 in 40 at 368."""
    values = np.random.default_rng(3).normal(10, 1, 369)
    for count, stated in ((368, False), (369, True)):
        assert (percentile_interval(latencies_of(values[:count]), 99) is not None) == stated
    assert 0.99**368 < 0.025 < 0.99**366


def test_a_speed_that_drifts_has_no_interval() -> None:
    values = np.linspace(10, 11, 1000) + np.random.default_rng(0).normal(size=1000) * 0.2
    assert percentile_interval(latencies_of(values), 50) is None
    assert mean_latency_interval(latencies_of(values)) is None


@pytest.mark.parametrize("q", [50.0, 90.0, 99.0])
def test_intervals_hold_the_truth_for_independent_runs(q: float) -> None:
    random = np.random.default_rng(0)
    truth = float(np.percentile(np.exp(random.normal(size=2_000_000) * 0.2), q))
    known = [
        ends
        for _ in range(600)
        if (ends := percentile_interval(latencies_of(np.exp(random.normal(size=1500) * 0.2)), q))
    ]
    assert len(known) >= 590
    assert sum(low <= truth <= high for low, high in known) >= 0.94 * len(known)


def test_two_runs_beside_a_changing_neighbour_agree_within_their_intervals() -> None:
    """Noise that lasts longer than a run of the loop: 19 of 20 pairs of runs must agree."""
    random = np.random.default_rng(1)

    def run() -> tuple[float, float] | None:
        load = 5 + np.repeat(np.abs(random.normal(size=80)), 50)
        return percentile_interval(latencies_of(load + random.normal(size=4000) * 0.1), 50)

    pairs = [(a, b) for a, b in ((run(), run()) for _ in range(100)) if a and b]
    assert len(pairs) >= 40
    agree = sum(max(a[0], b[0]) <= min(a[1], b[1]) for a, b in pairs)
    assert agree >= 0.95 * len(pairs)


def test_a_long_run_stays_exact() -> None:
    random = np.random.default_rng(2)
    ns = (5e5 * np.exp(random.normal(size=400_000) * 0.2)).astype(np.int64)
    recorder = LatencyRecorder()
    for value in ns.tolist():
        recorder.add(value)
    latencies = recorder.latencies()
    assert latencies.ns.nbytes == 8 * len(ns)
    for q in (0.1, 50, 99, 99.9):
        assert latencies.percentile(q) == pytest.approx(np.percentile(ns, q) / 1e6, rel=1e-12)
    assert latencies.count == len(ns)
    assert latencies.mean_ms == pytest.approx(ns.mean() / 1e6)
    assert (latencies.min_ms, latencies.max_ms) == (ns.min() / 1e6, ns.max() / 1e6)


@pytest.mark.parametrize("count", [1, 3, 17, 300, 5000])
def test_the_order_of_runs_is_kept(count: int) -> None:
    milliseconds = np.linspace(1, 2, count)
    recorder = LatencyRecorder()
    for value in milliseconds:
        recorder.add(round(value * 1e6))
    for found in (recorder.latencies(), latencies_of(milliseconds)):
        parts = [part.percentile(50) for part in found.parts(10)]
        assert parts == sorted(parts)
        assert sum(part.count for part in found.parts(10)) == count == found.count
        for q in (0, 37.5, 50, 100):
            truth = np.percentile(milliseconds, q)
            assert found.percentile(q) == pytest.approx(truth, rel=2e-6)


def test_a_clock_that_ran_backwards_is_kept_as_the_least() -> None:
    assert latencies_of([5.0, -3.0, 5.0]).min_ms == -3
    recorder = LatencyRecorder()
    for value in (5_000_000, -3_000_000):
        recorder.add(value)
    assert recorder.latencies().min_ms == -3
