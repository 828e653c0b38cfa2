"""Energy of synthetic boards whose energy is known: constant, rising, swinging, counted."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fr_edge.runtime.machine.energy import energy, mean_power
from fr_edge.runtime.machine.monitor import SensorTrace
from fr_edge.runtime.machine.sensors import Reading

IDLE_MW = 3000.0
Power = Callable[[float], float]

POWERS: dict[str, Power] = {  # milliwatts at a time from the begin of the timed runs
    "constant": lambda at: 9000.0,
    "rising": lambda at: 8000.0 + 300.0 * at,
    "swinging": lambda at: 9000.0 + 2000.0 * math.sin(2 * math.pi * at / 1.7),
}


def _readings(
    power: Power, seconds: float, begin: float, warm_up_s: float = 0.7
) -> Iterator[tuple[float, float]]:
    """Time and power as `watch` reads them: at rest, every half second under load, at rest."""
    yield begin - warm_up_s, IDLE_MW
    at = begin - warm_up_s + 0.5
    while at < begin + seconds:
        yield at, power(at - begin)
        at += 0.5
    yield begin + seconds + 0.01, IDLE_MW


def _rail(
    power: Power, seconds: float, begin: float = 100.0, warm_up_s: float = 0.7
) -> SensorTrace:
    rows = list(_readings(power, seconds, begin, warm_up_s))
    readings = [Reading(power_mw={"VDD_IN": value}) for _, value in rows]
    return SensorTrace([at for at, _ in rows], readings, load_s=(begin, begin + seconds))


def _drawn_mj(power: Power, seconds: float) -> float:
    """Energy above idle, by a sum over a thousand steps a second."""
    steps = np.arange(0.0005, seconds, 0.001)
    return sum(power(at) - IDLE_MW for at in steps.tolist()) / 1000


def _calm(seconds: float = 4.0) -> SensorTrace:
    times = np.arange(0, seconds + 0.05, 0.1)
    return SensorTrace(times.tolist(), [Reading(power_mw={"VDD_IN": IDLE_MW}) for _ in times])


@pytest.mark.parametrize("warm_up_s", [0.26, 0.7])
@pytest.mark.parametrize("seconds", [2.0, 10.0])
@pytest.mark.parametrize("kind", POWERS)
def test_the_energy_of_a_run_is_known_within_two_percent(
    kind: str, seconds: float, warm_up_s: float
) -> None:
    """Faces one after the other, 20 ms each: the readings at rest do not count."""
    run = _rail(POWERS[kind], seconds, warm_up_s=warm_up_s)
    result = energy(run, _calm(), faces=1, seconds=0.02)
    assert result is not None
    total = result.mj_per_face * seconds / 0.02
    assert total == pytest.approx(_drawn_mj(POWERS[kind], seconds), rel=0.02)
    assert result.idle_mw == pytest.approx(IDLE_MW)
    assert result.total_mj_per_face == pytest.approx(result.mj_per_face + IDLE_MW * 0.02, rel=1e-9)


@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_counters_are_read_under_load_only_and_may_wrap(seconds: float) -> None:
    begin, wrap, used = 50.0, 50_000_000, 0.0
    rows = [at for at, _ in _readings(POWERS["rising"], seconds, begin)]
    readings, last = [], rows[0]
    for at in rows:
        middle = (last + at) / 2 - begin
        used += POWERS["rising"](middle) * (at - last) * 1000  # uJ
        last = at
        readings.append(Reading(energy_uj={"p": int(used) % wrap}, wrap_uj={"p": wrap}))
    trace = SensorTrace(rows, readings, load_s=(begin, begin + seconds))
    result = mean_power(trace)
    assert result is not None
    assert result.rail == "p"
    truth = _drawn_mj(POWERS["rising"], seconds) / seconds + IDLE_MW
    assert result.mean_mw == pytest.approx(truth, rel=0.02)


def test_a_counter_that_wraps_again_and_again_in_a_long_run() -> None:
    readings = [
        Reading(energy_uj={"p": uj % 1000}, wrap_uj={"p": 1000}) for uj in range(0, 9001, 600)
    ]
    result = mean_power(SensorTrace([float(i) for i in range(len(readings))], readings))
    assert result is not None
    assert result.mean_mw == pytest.approx(600 / 1000)


def test_readings_that_are_few_give_a_figure_without_an_interval() -> None:
    random = np.random.default_rng(0)

    def noisy(at: float) -> float:
        return 9000.0 + 200.0 * random.standard_normal()

    short = energy(_rail(noisy, 10.0), _calm(), 1, 0.02, (0.0199, 0.0201))
    long = energy(_rail(noisy, 60.0), _calm(), 1, 0.02, (0.0199, 0.0201))
    assert short is not None
    assert long is not None
    assert short.interval_95_mj is None
    assert long.interval_95_mj is not None
    low, high = long.interval_95_mj
    assert low < 6000 * 0.02 < high
    assert high - low < 0.05 * 6000 * 0.02
    assert energy(_rail(noisy, 60.0), _calm(), 1, 0.02).interval_95_mj is None  # type: ignore[union-attr]


def test_intervals_of_energy_hold_the_truth() -> None:
    """Readings that depend on each other, beside an idle power that is only known from readings;
    an interval as if they were independent holds the truth in 70 of 100."""
    random, held, stated = np.random.default_rng(1), 0, 0
    for _ in range(100):
        noise = np.zeros(260)
        for i in range(1, 260):
            noise[i] = 0.6 * noise[i - 1] + random.standard_normal()
        values = iter(9000 + 300 * noise[20:])
        run = _rail(lambda at, values=values: float(next(values)), 110.0)  # type: ignore[misc]
        calm = [
            Reading(power_mw={"VDD_IN": IDLE_MW + 50 * random.standard_normal()}) for _ in range(41)
        ]
        idle = SensorTrace([0.1 * i for i in range(41)], calm)
        result = energy(run, idle, 1, 0.02, (0.02, 0.02))
        assert result is not None
        if result.interval_95_mj is not None:
            stated += 1
            held += result.interval_95_mj[0] <= 6000 * 0.02 <= result.interval_95_mj[1]
    assert stated >= 30
    assert held >= 0.91 * stated
