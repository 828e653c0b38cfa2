"""Replayed boards: what is read while a run lasts, and what spoils it."""

import time
from threading import Event

import numpy as np
import pytest

from fr_edge.runtime.benchmark.result import summarize_run
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import latencies_of
from fr_edge.runtime.benchmark.timing import Timing
from fr_edge.runtime.machine import monitor
from fr_edge.runtime.machine.energy import energy, mean_power
from fr_edge.runtime.machine.monitor import (
    SensorTrace,
    anomalies,
    rest,
    summarize_trace,
    watch,
)
from fr_edge.runtime.machine.sensors import Reading


def _clocks(*mhz: float) -> SensorTrace:
    readings = [Reading(clock_mhz={"gpu": value}) for value in mhz]
    return SensorTrace([float(i) for i in range(len(readings))], readings)


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
    third, calls = Event(), []

    def read() -> Reading:
        calls.append(0)
        if len(calls) == 3:
            third.set()
        return Reading(power_mw={"VDD_IN": 5000.0})

    with watch(read, period_s=0.05) as trace:
        assert third.wait(60)
    assert len(trace.readings) == len(trace.times) == len(calls) > 3  # the last one at the end
    assert trace.times == sorted(trace.times)
    idle = rest(0.1, lambda: Reading(power_mw={"VDD_IN": 4000.0}))
    assert idle is not None
    result = mean_power(idle)
    assert result is not None
    assert result.mean_mw == 4000


def test_a_sensor_that_never_answers_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor, "_PATIENCE_S", 0.2)
    asked, stuck, calls = Event(), Event(), []

    def read() -> Reading:
        calls.append(0)
        if len(calls) > 1:
            asked.set()
            stuck.wait(60)  # the second reading comes too late
            stuck.set()
        return Reading(power_mw={"VDD_IN": 5000.0})

    with watch(read, period_s=0.05) as trace:
        assert asked.wait(60)
    assert not stuck.is_set()
    assert trace.readings == []
    assert "a sensor does not answer" in caplog.text
    assert energy(trace, trace, 1, 1.0) is None
    stuck.set()
