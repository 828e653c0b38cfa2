"""Energy per face: the power of a run over its time, above the power at rest.

Power is integrated over the run, from the first timed face to the last: rails by the trapezoid over
the readings under load, counters by their differences. Before the first such reading and after the
last one its power is taken to hold. Readings at rest give the idle power and nothing else.
"""

from dataclasses import dataclass

import numpy as np

from ...arrays import F64
from ...metrics.time_series import Ends, make_series, mean_interval
from .monitor import SensorTrace

_MIN_READINGS = 2


@dataclass(frozen=True)
class MeanPower:
    """Mean power over a trace's time of load, or over a trace at rest.

    Attributes:
        rail: What it is the power of.
        mean_mw: Milliwatts.
        half_mw: Half width of its 95 % interval; None where the readings are too few, drift or
            depend on each other for too long.
        samples: Readings it comes from.
    """

    rail: str
    mean_mw: float
    half_mw: float | None
    samples: int


@dataclass(frozen=True)
class FaceEnergy:
    """Energy that embedding a face takes.

    Attributes:
        rail: What was measured.
        power_mw: Mean power of the run.
        idle_mw: Mean power at rest.
        samples: Readings of the run.
        mj_per_face: Millijoules above those of the machine at rest.
        interval_95_mj: Ends of the 95 % interval of `mj_per_face`; None where power or time have
            none.
        total_mj_per_face: Millijoules with those of the machine at rest.
    """

    rail: str
    power_mw: float
    idle_mw: float
    samples: int
    mj_per_face: float
    interval_95_mj: Ends | None
    total_mj_per_face: float | None = None


def mean_power(trace: SensorTrace) -> MeanPower | None:
    """Mean power over time: of energy counters where there are some, else of the rails.

    Args:
        trace: With `load_s` that time and the readings within count; their neighbours under load
            help to interpolate. Without it, all of the trace.

    Returns:
        The power; None where no sensor reports it, or fewer than two readings do.
    """
    if len(trace.readings) < _MIN_READINGS:
        return None
    return _counted_power(trace) or _rail_power(trace)


def energy(
    run: SensorTrace,
    idle: SensorTrace,
    faces: int,
    seconds: float,
    interval_s: Ends | None = None,
) -> FaceEnergy | None:
    """Energy per face, with its 95 % interval.

    Args:
        run: The machine during the runs.
        idle: The machine at rest.
        faces: Faces that one run embeds.
        seconds: Mean time of one run.
        interval_s: 95 % interval of that time.

    Returns:
        The energy, None where no sensor reports power, or not the same one in both traces.
    """
    busy, calm = mean_power(run), mean_power(idle)
    if busy is None or calm is None or busy.rail != calm.rail:
        return None
    per_face, above = seconds / faces, busy.mean_mw - calm.mean_mw
    interval = None
    if busy.half_mw is not None and calm.half_mw is not None and interval_s is not None:
        by_time = above * (interval_s[1] - interval_s[0]) / 2 / faces
        half = float(np.hypot(np.hypot(busy.half_mw, calm.half_mw) * per_face, by_time))
        interval = (above * per_face - half, above * per_face + half)
    return FaceEnergy(
        busy.rail,
        busy.mean_mw,
        calm.mean_mw,
        busy.samples,
        above * per_face,
        interval,
        busy.mean_mw * per_face,
    )


def _rail_power(trace: SensorTrace) -> MeanPower | None:
    totals = [reading.total_mw() for reading in trace.readings]
    rail = next((total[0] for total in totals if total is not None), "")
    pairs = zip(trace.times, totals, strict=True)
    known = [(at, total[1]) for at, total in pairs if total is not None and total[0] == rail]
    times, values = np.array(known, np.float64).reshape(-1, 2).T
    begin, end = _span(trace)
    loaded = _under_load(trace, times)
    within = loaded & (begin <= times) & (times <= end)
    if within.sum() < _MIN_READINGS or end <= begin:
        return None
    grid = np.unique(np.concatenate([[begin], times[within], [end]]))
    power = np.interp(grid, times[loaded], values[loaded])
    mean = float(((power[1:] + power[:-1]) / 2) @ np.diff(grid)) / (end - begin)
    return MeanPower(rail, mean, _half_width(values[within]), int(within.sum()))


def _counted_power(trace: SensorTrace) -> MeanPower | None:
    """Power by energy counters, which may wrap; between two readings it is their difference."""
    names = set.intersection(*(set(reading.energy_uj) for reading in trace.readings))
    begin, end = _span(trace)
    times = np.array(trace.times)
    loaded = _under_load(trace, times)
    if not names or loaded.sum() < _MIN_READINGS or end <= begin:
        return None
    readings = [r for r, load in zip(trace.readings, loaded, strict=True) if load]
    times, used = times[loaded], np.zeros(len(readings))
    for name in names:
        for index, (earlier, later) in enumerate(zip(readings, readings[1:], strict=False), 1):
            step = later.energy_uj[name] - earlier.energy_uj[name]
            used[index] += step if step >= 0 else step + later.wrap_uj[name]
    power = used[1:] / 1000 / np.diff(times)
    counted = np.cumsum(used) / 1000
    ends = [_at(point, times, counted, power) for point in (begin, end)]
    within = power[(begin <= times[:-1]) & (times[1:] <= end)]
    mean = (ends[1] - ends[0]) / (end - begin)
    return MeanPower(" + ".join(sorted(names)), mean, _half_width(within), len(power) + 1)


def _at(point: float, times: F64, counted: F64, power: F64) -> float:
    """A counter at a time; outside of the readings its last power holds."""
    before, after = min(0.0, point - times[0]), max(0.0, point - times[-1])
    return float(np.interp(point, times, counted) + before * power[0] + after * power[-1])


def _span(trace: SensorTrace) -> Ends:
    return trace.load_s or (trace.times[0], trace.times[-1])


def _under_load(trace: SensorTrace, times: F64) -> np.typing.NDArray[np.bool_]:
    """Which readings count: of a run all but the first and the last, which are taken at rest."""
    if trace.load_s is None:
        return np.ones(len(times), bool)
    return (trace.times[0] < times) & (times < trace.times[-1])


def _half_width(values: F64) -> float | None:
    ends = mean_interval(make_series(values)) if len(values) else None
    return None if ends is None else (ends[1] - ends[0]) / 2
