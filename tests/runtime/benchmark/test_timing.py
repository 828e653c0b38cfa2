"""Timing with a clock that the test winds: known work gives known figures."""

import numpy as np
import pytest

from fr_edge.runtime.benchmark.statistics import latencies_of
from fr_edge.runtime.benchmark.timing import Timing, time_runs, waiting_ns


class _Clock:
    """Nanoseconds that pass only when the work says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def work(self, ms: float) -> None:
        self.now += round(ms * 1e6)


def test_latencies_are_the_works_own() -> None:
    clock = _Clock()
    timed = time_runs(lambda i: clock.work(2 + i % 2), 1.0, clock=clock)
    assert timed.steady
    assert set((timed.latencies.ns / 1e6).round(5)) == {2.0, 3.0}
    assert timed.latencies.mean_ms * timed.latencies.count == pytest.approx(1000, abs=3)


def test_what_happens_between_runs_is_not_timed() -> None:
    clock = _Clock()
    timed = time_runs(lambda _: clock.work(1), 0.5, clock=clock, between=lambda *_: clock.work(9))
    assert set((timed.latencies.ns / 1e6).round(5)) == {1.0}
    assert timed.latencies.count in (50, 51)


def test_warm_up_goes_on_until_the_speed_is_steady() -> None:
    clock = _Clock()
    calls = iter(range(10_000))

    def work(_: int) -> None:
        clock.work(max(10, 50 - next(calls)))

    timed = time_runs(work, 0.3, clock=clock)
    assert timed.steady
    assert timed.warmup_s > 1.2
    assert set((timed.latencies.ns / 1e6).round(5)) == {10.0}


def test_warm_up_that_never_ends_is_said() -> None:
    clock = _Clock()
    calls = iter(range(10_000))
    timed = time_runs(lambda _: clock.work(1 + next(calls)), 0.5, warmup_s=2.0, clock=clock)
    assert not timed.steady


def test_few_runs_prolong_the_time_three_times_at_most() -> None:
    clock = _Clock()
    slow = time_runs(lambda _: clock.work(100), 1.0, 20, clock=clock)
    assert slow.latencies.count == 20
    slower = time_runs(lambda _: clock.work(200), 1.0, 100, clock=clock)
    assert slower.latencies.count == 15


def test_spread_drift_and_outliers() -> None:
    steady = Timing(latencies_of(np.full(1000, 5.0)), 1.0, True, 0.0)
    assert (steady.variation, steady.drift, steady.outliers) == (0, 0, 0)
    slowing = Timing(latencies_of(np.linspace(5, 10, 1000)), 1.0, True, 0.0)
    assert slowing.drift == pytest.approx(0.6, abs=0.01)
    spiked = Timing(latencies_of(np.where(np.arange(1000) % 100 == 0, 80.0, 5.0)), 1.0, True, 0.0)
    assert (spiked.variation, spiked.outliers) == (0, 10)
    noisy = Timing(latencies_of(np.random.default_rng(0).normal(10, 2, 5000)), 1.0, True, 0.0)
    assert noisy.variation == pytest.approx(0.2, abs=0.01)


def test_standing_in_line_never_shrinks() -> None:
    before = waiting_ns()
    if before is None:
        pytest.skip("this kernel does not tell how long threads waited for a core")
    sum(range(10**6))
    after = waiting_ns()
    assert after is not None
    assert after >= before
