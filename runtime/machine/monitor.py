"""Watch the board while something runs: a thread that asks its sensors a few times a second.

Energy per face is what the run drew above idle; its uncertainty comes from how both swing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

import numpy as np

from .nvidia_smi import read_smi
from .sensors import Reading, read_sysfs, throttle_counts
from .tegrastats import power_mode, read_tegrastats

_EVERY_S = 0.5

_KEPT = 720
"""Readings of a run, about: a longer one is asked less often, so that memory stays flat."""

_REST_S = 2.0

MAX_CLOCK_STEP_S = 0.5

MAX_CLOCK_DROP = 0.05

_Z = 1.96


@dataclass
class SensorTrace:
    """Readings with their times in seconds, gathered while a `watch` is open."""

    times: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    throttles: dict[str, int] = field(default_factory=dict)
    """How often each kind of event throttled the machine meanwhile; what is not told is missing."""
    power_modes: tuple[str, ...] = ()
    """A Jetson's before and after, of those that it told."""
    clock_step_s: float = 0.0
    """How far the wall clock moved against the one that only runs: set, or the machine slept."""


@dataclass(frozen=True)
class Power:
    """Mean power in mW over `samples` readings (or one counter), `half_mw` the half width of its
    95 % interval, and what it is of."""

    rail: str
    mean_mw: float
    half_mw: float
    samples: int


def read_board() -> Reading:
    """All that this machine's sensors tell now."""
    kernel, card = read_sysfs(), read_smi()
    if not kernel.power_mw and not card.power_mw:
        said = read_tegrastats()
        clocks = {**said.clock_mhz, **kernel.clock_mhz}
        kernel = replace(
            kernel,
            power_mw=said.power_mw,
            clock_mhz=clocks,
            load_percent={**said.load_percent, **kernel.load_percent},
        )
    return replace(
        kernel,
        power_mw={**kernel.power_mw, **card.power_mw},
        temperature_c={**kernel.temperature_c, **card.temperature_c},
        clock_mhz={**kernel.clock_mhz, **card.clock_mhz},
        throttled=kernel.throttled + card.throttled,
    )


@contextmanager
def watch(
    read: Callable[[], Reading] = read_board,
    clock: Callable[[], float] = time.monotonic,
    *,
    duration_s: float = 0.0,
    wall: Callable[[], float] = time.time,
) -> Iterator[SensorTrace]:
    """Readings while the block runs, one at least at its begin and its end."""
    watched, stop = SensorTrace(), Event()
    every = max(_EVERY_S, duration_s / _KEPT)

    def sample() -> None:
        watched.readings.append(read())
        watched.times.append(clock())

    def loop() -> None:
        while not stop.wait(every):
            sample()

    counts, mode, ahead = throttle_counts(), power_mode(), wall() - clock()
    sample()
    thread = Thread(target=loop, daemon=True, name="watch")
    thread.start()
    try:
        yield watched
    finally:
        stop.set()
        thread.join()
        sample()
        after = throttle_counts()
        watched.throttles = {why: after[why] - counts[why] for why in counts if why in after}
        watched.power_modes = tuple(filter(None, (mode, power_mode())))
        watched.clock_step_s = wall() - clock() - ahead


def rest(duration_s: float, read: Callable[[], Reading] = read_board) -> SensorTrace | None:
    """The board at rest, watched for up to two seconds; None where no sensor tells of power."""
    first = read()
    if not first.energy_uj and first.total_mw() is None:
        return None
    with watch(read) as idle:
        time.sleep(min(_REST_S, duration_s))
    return idle


def power(watched: SensorTrace) -> Power | None:
    """Mean power: of counters where there are some, else of the rails; None without either."""
    if (counted := _counted(watched)) is not None:
        return counted
    totals = [total for reading in watched.readings if (total := reading.total_mw()) is not None]
    if len(totals) < 2:
        return None
    values = np.array([value for _, value in totals])
    half = _Z * float(values.std(ddof=1)) / np.sqrt(len(values))
    return Power(totals[0][0], float(values.mean()), float(half), len(values))


def energy(
    run: SensorTrace, idle: SensorTrace, faces: int, seconds: float
) -> dict[str, Any] | None:
    """Millijoules per face above idle, with its 95 % interval; None without a power sensor.

    `faces` is how many a run of `seconds` embeds.
    """
    busy, calm = power(run), power(idle)
    if busy is None or calm is None or busy.rail != calm.rail:
        return None
    per_face = seconds / faces
    above, half = busy.mean_mw - calm.mean_mw, float(np.hypot(busy.half_mw, calm.half_mw))
    return {
        "rail": busy.rail,
        "power_mw": round(busy.mean_mw, 1),
        "idle_mw": round(calm.mean_mw, 1),
        "samples": busy.samples,
        "mj_per_face": round(above * per_face, 4),
        "interval_95_mj": [round((above + sign * half) * per_face, 4) for sign in (-1, 1)],
    }


def state(watched: SensorTrace) -> dict[str, Any]:
    """What the sensors told over the run, lowest and highest by name; none for what they did not."""
    return {
        name: _listed(_spans([getattr(reading, name) for reading in watched.readings]))
        for name in ("clock_mhz", "temperature_c", "power_mw", "load_percent", "memory_mb", "fan")
    } | {
        "throttled": _throttled(watched),
        "power_mode": list(dict.fromkeys(watched.power_modes)),
    }


def anomalies(watched: SensorTrace, warmup_s: float = 0.0) -> list[str]:
    """Why the board spoiled a run: it throttled, or its clocks moved after `warmup_s`."""
    found = [f"throttled: {why}" for why in _throttled(watched)]
    found += [f"throttled: {why} {n} times" for why, n in watched.throttles.items() if n > 0]
    if abs(watched.clock_step_s) > MAX_CLOCK_STEP_S:
        found.append(
            f"the clock jumped: it was set, or the machine slept, {watched.clock_step_s:+.1f} s"
        )
    if len(set(watched.power_modes)) > 1:
        found.append(f"the power mode changed: {' to '.join(watched.power_modes)}")
    # The first and the last reading are taken at rest.
    inner = zip(watched.times[1:-1], watched.readings[1:-1], strict=True)
    running = [r.clock_mhz for at, r in inner if at - watched.times[0] > warmup_s]
    for name, (low, high) in _spans(running).items():
        if low < (1 - MAX_CLOCK_DROP) * high:
            found.append(f"clocks moved: {name} between {low:.0f} and {high:.0f} MHz")
    return found


def _counted(watched: SensorTrace) -> Power | None:
    """Energy counters from the first reading to the last; one that wrapped is mended."""
    first, last = watched.readings[0], watched.readings[-1]
    seconds = watched.times[-1] - watched.times[0]
    names = sorted(set(first.energy_uj) & set(last.energy_uj))
    if not names or seconds <= 0:
        return None
    used = 0
    for name in names:
        told = [r for r in watched.readings if name in r.energy_uj]
        for one, other in zip(told, told[1:], strict=False):
            step = other.energy_uj[name] - one.energy_uj[name]
            used += step if step >= 0 else step + other.wrap_uj[name]
    return Power(" + ".join(names), used / 1000 / seconds, 0.0, 1)


def _listed(spans: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {name: [round(low, 3), round(high, 3)] for name, (low, high) in spans.items()}


def _throttled(watched: SensorTrace) -> list[str]:
    return sorted({why for reading in watched.readings for why in reading.throttled})


def _spans(rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    names = sorted({name for row in rows for name in row})
    return {
        name: (min(found), max(found))
        for name in names
        for found in [[row[name] for row in rows if name in row]]
    }
