"""Replayed boards: energy with its uncertainty, and what spoils a run."""

import time

import numpy as np
import pytest

from fr_edge.runtime.benchmark.result import summarize_run
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import latencies_of
from fr_edge.runtime.benchmark.timing import Timing
from fr_edge.runtime.machine.monitor import (
    SensorTrace,
    anomalies,
    energy,
    mean_power,
    rest,
    summarize_trace,
    watch,
)
from fr_edge.runtime.machine.sensors import Reading


def _rail(*milliwatts: float) -> SensorTrace:
    readings = [Reading(power_mw={"VDD_IN": value}) for value in milliwatts]
    return SensorTrace([float(i) for i in range(len(readings))], readings)


def _clocks(*mhz: float) -> SensorTrace:
    readings = [Reading(clock_mhz={"gpu": value}) for value in mhz]
    return SensorTrace([float(i) for i in range(len(readings))], readings)


def test_energy_is_what_was_drawn_above_idle() -> None:
    run = _rail(*[8700, 9300] * 20)
    idle = _rail(*[3800, 4200] * 5)
    result = energy(run, idle, faces=8, seconds=0.02)
    assert result is not None
    assert result.rail == "VDD_IN"
    low, high = result.interval_95_mj
    assert low < 5000 * 0.02 / 8 < high  # 5 W for 20 ms, 8 faces: 12.5 mJ each
    assert high - low < 1.0
    assert low < result.mj_per_face < high


def test_counters_are_exact_and_may_wrap() -> None:
    first = Reading(energy_uj={"package-0": 900}, wrap_uj={"package-0": 1000})
    last = Reading(energy_uj={"package-0": 400}, wrap_uj={"package-0": 1000})
    result = mean_power(SensorTrace([10.0, 10.5], [first, last]))
    assert result is not None
    assert result.mean_mw == pytest.approx(500 / 1000 / 0.5)


def test_a_counter_that_wraps_again_and_again_in_a_long_run() -> None:
    readings = [
        Reading(energy_uj={"p": uj % 1000}, wrap_uj={"p": 1000}) for uj in range(0, 9001, 600)
    ]
    result = mean_power(SensorTrace([float(i) for i in range(len(readings))], readings))
    assert result is not None
    assert result.mean_mw == pytest.approx(600 / 1000)


def test_no_sensor_is_no_energy() -> None:
    silent = SensorTrace([0.0, 1.0], [Reading(), Reading()])
    assert mean_power(silent) is None
    assert energy(silent, silent, 1, 1.0) is None
    assert rest(0.1, Reading) is None
    timing = Timing(latencies_of(np.full(200, 5.0)), 0.1, True, 0.0)
    run = summarize_run(Setting(), timing, 10.0, 1.0, silent, None)
    assert run.energy is None
    assert run.reasons == ()


def test_a_throttled_board_spoils_the_run() -> None:
    quiet = Timing(latencies_of(np.full(200, 5.0)), 0.1, True, 0.0)
    throttled = SensorTrace(
        [0.0, 1.0], [Reading(), Reading(throttled=("GPU 0: software thermal slowdown",))]
    )
    run = summarize_run(Setting(), quiet, 10.0, 1.0, throttled)
    assert run.verdict == "INVALID"
    assert run.reasons == ("throttled: GPU 0: software thermal slowdown",)
    cores = SensorTrace(
        [0.0, 1.0],
        [Reading(), Reading()],
        throttles={"the CPU's cores": 3, "average over-current": 0},
    )
    assert anomalies(cores) == ["throttled: the CPU's cores 3 times"]


def test_a_board_that_says_so_itself() -> None:
    alert = SensorTrace([0.0, 1.0], [Reading(throttled=("gpu",)), Reading()])
    assert anomalies(alert) == ["throttled: gpu"]
    changed = SensorTrace([0.0, 1.0], [Reading(), Reading()], power_modes=("MAXN", "15W"))
    assert anomalies(changed) == ["the power mode changed: MAXN to 15W"]


def test_a_clock_that_is_set_or_a_machine_that_sleeps() -> None:
    ticks = iter(np.arange(0.0, 100.0, 0.01))
    steady = lambda: float(next(ticks))  # noqa: E731
    for step, reasons in ((0.0, []), (3600.0, ["the clock jumped"]), (-2.0, ["the clock jumped"])):
        walls = iter((1000.0, 1000.0 + step))
        with watch(Reading, steady, wall=lambda walls=walls: next(walls) + steady()) as trace:
            pass
        assert [reason.split(":")[0] for reason in anomalies(trace)] == reasons


def test_a_long_run_is_watched_less_often() -> None:
    with watch(Reading, duration_s=3600.0) as trace:
        time.sleep(0.7)
    assert len(trace.readings) == 2


def test_clocks_that_move_spoil_the_run() -> None:
    # The first and the last reading are taken at rest.
    assert anomalies(_clocks(300, 1300, 1295, 1300, 300)) == []
    assert anomalies(_clocks(300, 1300, 1000, 1300, 300)) == [
        "clocks moved: gpu between 1000 and 1300 MHz"
    ]
    # A clock that rises while the engine warms up is as it should be.
    assert anomalies(_clocks(300, 600, 1300, 1300, 300), warmup_s=1.5) == []
    assert summarize_trace(_clocks(300, 1300, 300)).clock_mhz == {"gpu": (300, 1300)}


def test_watching_samples_while_the_work_runs() -> None:
    with watch(lambda: Reading(power_mw={"VDD_IN": 5000.0})) as trace:
        time.sleep(1.3)
    assert 3 <= len(trace.readings) <= 5
    assert trace.times == sorted(trace.times)
    idle = rest(0.1, lambda: Reading(power_mw={"VDD_IN": 4000.0}))
    assert idle is not None
    result = mean_power(idle)
    assert result is not None
    assert (result.mean_mw, result.half_mw) == (4000, 0)
