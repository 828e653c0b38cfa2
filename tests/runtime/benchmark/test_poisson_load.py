"""Queries at random against queueing theory: with a clock that the test winds, and once for real."""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fr_edge.errors import UsageError
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.benchmark.poisson_load import PoissonLoad, poisson_gaps, wait_until
from fr_edge.runtime.benchmark.result import summarize_run
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import LatencyRecorder, percentile_interval
from fr_edge.runtime.benchmark.timing import Timing, time_runs


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


def queue(rate: float, work_ms: float, seconds: float) -> Timing:
    clock = Clock(work_ms)
    return time_runs(clock.work, seconds, clock=clock, rate_per_s=rate, wait=clock.wait)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_waiting_is_that_of_a_queue_with_constant_work(load: float) -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) of a query's work, and as many queries as the
    engine rests find it free (Pollaczek and Khinchine)."""
    timed = queue(1e3 * load, 1.0, 60 / load)
    assert timed.load is not None
    waited = timed.latencies.mean_ms - 1.0
    assert waited == pytest.approx(load / (2 * (1 - load)), rel=0.05)
    at_once = (timed.latencies.ns < 1_000_100).sum()
    assert at_once / timed.latencies.count == pytest.approx(1 - load, abs=0.02)
    assert timed.load.busy == pytest.approx(load, rel=0.02)
    assert timed.load.achieved_per_s == pytest.approx(1e3 * load, rel=0.02)
    assert timed.load.work.mean_ms == pytest.approx(1.0)
    assert (timed.variation, timed.drift, timed.outliers) == pytest.approx((0, 0, 0))  # the work's


def test_what_the_benchmark_does_in_between_is_not_waited_for() -> None:
    """It looks at embeddings and writes its journal; no service would."""
    clock = Clock(1.0)
    alone = queue(800.0, 1.0, 20.0)

    def between(index: int, ns: int) -> None:
        clock.now += 5_000_000 if index % 100 == 0 else 1000

    timed = time_runs(
        clock.work, 40.0, clock=clock, rate_per_s=800.0, wait=clock.wait, between=between
    )
    assert timed.load is not None
    assert timed.load.late_ms == 0
    assert timed.load.busy == pytest.approx(0.8, rel=0.02)
    count = min(timed.latencies.count, alone.latencies.count)
    assert count > 10_000
    assert timed.latencies.mean_ms == pytest.approx(1 + 2.0, rel=0.1)


def test_queries_that_are_sent_late_are_invalid() -> None:
    clock = Clock(1.0)

    def wait(due: int) -> None:
        if clock.now < due:
            clock.now = due + 200_000

    timed = time_runs(clock.work, 9.0, clock=clock, rate_per_s=100.0, wait=wait)
    assert timed.load is not None
    assert timed.load.late_ms == pytest.approx(0.2 * 0.9, abs=0.01)  # a tenth came while it worked
    reasons = summarize_run(Setting(rate=100), timed, 9.0, 1.0).reasons
    assert any("queries were sent late, by 0.1" in reason for reason in reasons)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_intervals_hold_the_truth_where_queries_wait_for_one_another(load: float) -> None:
    """Just as many queries as p99's interval asks for; with fewer it is not stated."""
    few = round(1.5 * 369 / (1 - load) ** 2)
    long = queue(1e3 * load, 1.0, 400 / load).latencies
    truth = long.percentile(99)
    inside = stated = 0
    for seed in range(40):
        clock = Clock(1.0)
        gaps = poisson_gaps(1e3 * load, seed + 1)
        queries = PoissonLoad(1e3 * load, 0, clock.wait, gaps)
        latencies = LatencyRecorder()
        for _ in range(round(1.3 * few)):
            queries.wait_for_next()
            start = clock()
            clock.work(0)
            latencies.add(queries.answered(start, clock()))
        ends = percentile_interval(latencies.latencies(queries.memory), 99)
        if ends is not None:
            stated += 1
            inside += ends[0] <= truth <= ends[1]
    assert stated > 20
    assert inside >= 0.9 * stated
    short = queue(1e3 * load, 1.0, 0.5 * few / (1e3 * load))
    assert percentile_interval(short.latencies, 99) is None
    assert percentile_interval(short.latencies, 50) is not None


def test_it_goes_on_until_the_queue_tells_enough() -> None:
    """At four fifths of the time at work 25 queries tell as much as an independent one."""
    clock = Clock(1.0)
    timed = time_runs(clock.work, 1.0, 100, clock=clock, rate_per_s=800.0, wait=clock.wait)
    assert timed.latencies.count == pytest.approx(2400, rel=0.1)  # three times as long as asked for
    assert timed.latencies.memory == pytest.approx(25, rel=0.5)
    few = summarize_run(Setting(rate=800), queue(800.0, 1.0, 1.0), 1.0, 1.0)
    (reason,) = (reason for reason in few.reasons if "too few" in reason)
    assert reason.startswith("too few queries: ")
    assert "lengthen --duration" in reason
    calm = time_runs(clock.work, 1.0, 100, clock=clock, rate_per_s=200.0, wait=clock.wait)
    assert 170 < calm.latencies.count < 230


def test_work_that_varies_makes_a_queue_remember_longer() -> None:
    """Exponential work: M/M/1, with c = 1 the memory doubles."""
    clock, random = Clock(1.0), np.random.default_rng(3)

    def work(_: int) -> None:
        clock.now += round(1e6 * random.exponential())

    timed = time_runs(work, 200.0, clock=clock, rate_per_s=500.0, wait=clock.wait)
    assert timed.latencies.memory == pytest.approx(2 / 0.5**2, rel=0.15)
    assert timed.latencies.mean_ms == pytest.approx(1 / (1 - 0.5), rel=0.1)


def test_gaps_are_exponential_and_can_be_repeated() -> None:
    gaps = np.array(list(islice(poisson_gaps(250.0), 20_000))) / 1e6
    assert gaps.mean() == pytest.approx(4.0, rel=0.03)
    assert gaps.std() == pytest.approx(4.0, rel=0.05)
    assert (gaps > 8).mean() == pytest.approx(np.exp(-2), abs=0.01)
    assert list(islice(poisson_gaps(250.0), 9)) == list(islice(poisson_gaps(250.0), 9))
    assert list(islice(poisson_gaps(250.0, 1), 9)) != list(islice(poisson_gaps(250.0), 9))


def test_an_engine_that_cannot_keep_up_is_invalid() -> None:
    timed = queue(2000.0, 1.0, 5.0)
    assert timed.load is not None
    assert timed.load.achieved_per_s == pytest.approx(1000, rel=0.01)
    assert timed.load.backlog == pytest.approx(5000, rel=0.05)
    run = summarize_run(Setting(rate=2000), timed, 5.0, 1.0)
    reasons = run.reasons
    assert run.latency_ms["p50"] is None  # of a queue that grows there is none
    assert not any("too few" in reason for reason in reasons)
    assert any("too many queries: at work 100% of the time" in reason for reason in reasons)
    assert any("it answers 1000 a second" in reason for reason in reasons)
    calm = summarize_run(Setting(rate=500), queue(500.0, 1.0, 20.0), 20.0, 1.0)
    assert not [reason for reason in calm.reasons if "queries" in reason or "nois" in reason]


def test_a_hopeless_rate_is_counted_to_a_million() -> None:
    timed = queue(1e6, 1.0, 2.0)
    assert timed.load is not None
    assert timed.load.backlog == 1_000_000


def test_figures_of_a_run() -> None:
    timed = queue(100.0, 2.0, 100.0)
    report = summarize_run(Setting(4, rate=100), timed, 100.0, 1.0)
    assert report.rate == 100
    assert report.throughput_per_s == pytest.approx(400, rel=0.03)
    load = report.load
    assert load is not None
    assert load.most_per_s == pytest.approx(500)
    assert load.work_p50_ms == pytest.approx(2.0, abs=1e-3)
    assert load.waiting_mean_ms == pytest.approx(report.latency_ms["mean"] - 2.0, abs=1e-3)


def test_ctrl_c_while_it_waits_keeps_what_was_answered() -> None:
    clock = Clock(1.0)

    def wait(due: int) -> None:
        if due > 1_000_000_000:
            raise KeyboardInterrupt
        clock.wait(due)

    timed = time_runs(clock.work, 9.0, clock=clock, rate_per_s=100.0, wait=wait)
    assert timed.interrupted
    assert timed.load is not None
    assert timed.latencies.count == timed.load.work.count > 20
    assert timed.load.backlog == 0


def test_waiting_ends_when_it_should() -> None:
    for ahead_ns in (-5, 300_000, 3_000_000):
        due = time.perf_counter_ns() + ahead_ns
        wait_until(due)
        assert time.perf_counter_ns() >= due


def test_a_real_engine_under_queries(mini: Path) -> None:
    found = benchmark(mini, "fp32", rates=(50,), duration_s=0.4, warmup_s=0.1, threads=(1,))
    (run,) = found.runs
    assert run.runs >= 10
    assert 0 < run.load.busy <= 1
    assert run.load.work_p50_ms > 0
    assert found.saturation_batch is None


def test_rates_that_make_no_sense(mini: Path) -> None:
    with pytest.raises(UsageError, match="one session"):
        benchmark(mini, rates=(50,), streams=(2,))
    with pytest.raises(UsageError, match="one session"):
        benchmark(mini, rates=(50,), batches=None)
    with pytest.raises(UsageError, match="rates are 1 or more"):
        benchmark(mini, rates=(0,))
