"""Queries at random against queueing theory: with a clock that the test winds, and once for real."""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fr_edge.errors import UsageError
from fr_edge.runtime.bench.arrivals import poisson_gaps, wait_until
from fr_edge.runtime.bench.benchmark import benchmark
from fr_edge.runtime.bench.timed_run import Run, Setting
from fr_edge.runtime.bench.timing import Timed, time_runs


class Clock:
    """Nanoseconds that pass when the work or the waiting says so."""

    def __init__(self, work_ms: float) -> None:
        self.now, self.work_ns = 0, round(work_ms * 1e6)

    def __call__(self) -> int:
        return self.now

    def work(self, _: int) -> None:
        self.now += self.work_ns

    def wait(self, due: int) -> None:
        self.now = max(self.now, due)


def queue(rate: float, work_ms: float, seconds: float) -> Timed:
    clock = Clock(work_ms)
    return time_runs(clock.work, seconds, clock=clock, rate_per_s=rate, wait=clock.wait)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_waiting_is_that_of_a_queue_with_constant_work(load: float) -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) of a query's work, and as many queries as the
    engine rests find it free (Pollaczek and Khinchine)."""
    timed = queue(1e3 * load, 1.0, 60 / load)
    assert timed.served is not None
    waited = timed.latencies.mean_ms - 1.0
    assert waited == pytest.approx(load / (2 * (1 - load)), rel=0.05)
    at_once = timed.latencies.all.counts[timed.latencies.all.values_ms < 1.0001].sum()
    assert at_once / timed.latencies.count == pytest.approx(1 - load, abs=0.02)
    assert timed.served.busy == pytest.approx(load, rel=0.02)
    assert timed.served.achieved_per_s == pytest.approx(1e3 * load, rel=0.02)
    assert timed.served.work.mean_ms == pytest.approx(1.0)
    assert (timed.variation, timed.drift, timed.outliers) == pytest.approx((0, 0, 0))  # the work's


def test_gaps_are_exponential_and_can_be_repeated() -> None:
    gaps = np.array(list(islice(poisson_gaps(250.0), 20_000))) / 1e6
    assert gaps.mean() == pytest.approx(4.0, rel=0.03)
    assert gaps.std() == pytest.approx(4.0, rel=0.05)
    assert (gaps > 8).mean() == pytest.approx(np.exp(-2), abs=0.01)
    assert list(islice(poisson_gaps(250.0), 9)) == list(islice(poisson_gaps(250.0), 9))
    assert list(islice(poisson_gaps(250.0, 1), 9)) != list(islice(poisson_gaps(250.0), 9))


def test_an_engine_that_cannot_keep_up_is_invalid() -> None:
    timed = queue(2000.0, 1.0, 5.0)
    assert timed.served is not None
    assert timed.served.achieved_per_s == pytest.approx(1000, rel=0.01)
    assert timed.served.backlog == pytest.approx(5000, rel=0.05)
    reasons = Run(Setting(rate=2000), timed, 5.0, 1.0).reasons
    assert any("too many queries: at work 100% of the time" in reason for reason in reasons)
    assert any("it answers 1000 a second" in reason for reason in reasons)
    calm = Run(Setting(rate=500), queue(500.0, 1.0, 20.0), 20.0, 1.0)
    assert not [reason for reason in calm.reasons if "queries" in reason or "nois" in reason]


def test_figures_of_a_run(mini: Path) -> None:
    timed = queue(100.0, 2.0, 100.0)
    report = Run(Setting(4, rate=100), timed, 100.0, 1.0).to_json()
    assert report["rate"] == 100
    assert report["throughput_per_s"] == pytest.approx(400, rel=0.03)
    served = report["served"]
    assert served["most_per_s"] == pytest.approx(500)
    assert served["work_p50_ms"] == pytest.approx(2.0, abs=1e-3)
    assert served["waiting_mean_ms"] == pytest.approx(report["latency_ms"]["mean"] - 2.0, abs=1e-3)


def test_ctrl_c_while_it_waits_keeps_what_was_answered() -> None:
    clock = Clock(1.0)

    def wait(due: int) -> None:
        if due > 1_000_000_000:
            raise KeyboardInterrupt
        clock.wait(due)

    timed = time_runs(clock.work, 9.0, clock=clock, rate_per_s=100.0, wait=wait)
    assert timed.interrupted
    assert timed.served is not None
    assert timed.latencies.count == timed.served.work.count > 20
    assert timed.served.backlog == 0


def test_waiting_ends_when_it_should() -> None:
    for ahead_ns in (-5, 300_000, 3_000_000):
        due = time.perf_counter_ns() + ahead_ns
        wait_until(due)
        assert time.perf_counter_ns() >= due


def test_a_real_engine_under_queries(mini: Path) -> None:
    found = benchmark(mini, "fp32", rates=(50,), duration_s=0.4, warmup_s=0.1, threads=(1,))
    (run,) = found.to_json()["runs"]
    assert run["runs"] >= 10
    assert 0 < run["served"]["busy"] < 1
    assert run["latency_ms"]["mean"] >= run["served"]["work_p50_ms"] * 0.5
    assert found.knee is None


def test_rates_that_make_no_sense(mini: Path) -> None:
    with pytest.raises(UsageError, match="one session"):
        benchmark(mini, rates=(50,), streams=(2,))
    with pytest.raises(UsageError, match="one session"):
        benchmark(mini, rates=(50,), batches=None)
    with pytest.raises(UsageError, match="rates are 1 or more"):
        benchmark(mini, rates=(0,))
