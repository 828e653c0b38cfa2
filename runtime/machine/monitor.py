"""Watch a machine's sensors while something runs: a thread that reads them a few times a second."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import Event, Thread

from .nvml import NvidiaCards
from .sensors import Reading, read_sysfs, throttle_counts
from .tegrastats import Tegrastats, power_mode

logger = logging.getLogger(__name__)

MAX_CLOCK_STEP_S = 0.5  # between wall clock and monotonic clock
MAX_CLOCK_DROP = 0.05  # share of the highest clock

_PERIOD_S = 0.5
_MAX_READINGS = 720  # about; a longer run is read less often, so that memory stays flat
_REST_S = 10.0
_REST_PERIOD_S = 0.1  # at rest, reading disturbs nothing
_PATIENCE_S = 5.0  # with a sensor that does not answer


@dataclass
class SensorTrace:
    """Readings gathered while a `watch` is open.

    Attributes:
        times: Of each reading, in seconds.
        readings: What the sensors reported.
        throttles: Events that slowed the machine meanwhile, by reason; a reason that the machine
            does not count is missing.
        power_modes: A Jetson's before and after, as far as reported.
        clock_step_s: How far the wall clock moved against the monotonic clock: it was set, or the
            machine slept.
        load_s: Begin and end of the timed runs, by the clock of `times`; None for a trace at rest.
            The first and the last reading of a trace with runs are taken at rest.
    """

    times: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    throttles: dict[str, int] = field(default_factory=dict)
    power_modes: tuple[str, ...] = ()
    clock_step_s: float = 0.0
    load_s: tuple[float, float] | None = None


Span = tuple[float, float]


@dataclass(frozen=True)
class TraceSummary:
    """Lowest and highest value of each sensor over a trace, by name; empty where none reported."""

    clock_mhz: Mapping[str, Span]
    temperature_c: Mapping[str, Span]
    power_mw: Mapping[str, Span]
    load_percent: Mapping[str, Span]
    memory_mb: Mapping[str, Span]
    fan: Mapping[str, Span]
    throttled: tuple[str, ...]
    power_mode: tuple[str, ...]


@contextmanager
def board_reader() -> Iterator[Callable[[], Reading]]:
    """Open the machine's sensors once, for many readings.

    Yields:
        A function that reads all sensors now.
    """
    with NvidiaCards() as cards, Tegrastats() as tegrastats:
        yield lambda: _read_all(cards, tegrastats)


def read_board() -> Reading:
    """Read all sensors of this machine once."""
    with board_reader() as read:
        return read()


@contextmanager
def watch(
    read: Callable[[], Reading] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    *,
    duration_s: float = 0.0,
    wall: Callable[[], float] = time.time,
    period_s: float = _PERIOD_S,
) -> Iterator[SensorTrace]:
    """Read sensors while the block runs, and once before and once after it.

    A thread of its own opens and reads them: a sensor that does not answer holds nothing up for more
    than a few seconds.

    Args:
        read: What reads the sensors; None for all of this machine, opened once.
        clock: Monotonic seconds, of the clock that times the runs.
        duration_s: How long the block is expected to run; a long one is read less often.
        wall: Seconds of the wall clock.
        period_s: Between two readings of a short block.

    Yields:
        The trace, which fills while the block runs.
    """
    period = max(period_s, duration_s / _MAX_READINGS)
    trace, stop, first = SensorTrace(), Event(), Event()
    readings, times = trace.readings, trace.times

    def loop() -> None:
        with board_reader() if read is None else nullcontext(read) as read_now:

            def sample() -> None:
                reading = read_now()
                times.append(clock())
                readings.append(reading)

            sample()
            first.set()
            while not stop.wait(period):
                sample()
            sample()

    counts, mode, offset = throttle_counts(), power_mode(), wall() - clock()
    thread = Thread(target=loop, daemon=True, name="watch")
    thread.start()
    first.wait(_PATIENCE_S)
    try:
        yield trace
    finally:
        stop.set()
        thread.join(_PATIENCE_S)
        if thread.is_alive():
            logger.warning("a sensor does not answer: its readings are left out")
            trace.readings, trace.times = [], []
        after = throttle_counts()
        trace.throttles = {why: after[why] - counts[why] for why in counts if why in after}
        trace.power_modes = tuple(filter(None, (mode, power_mode())))
        trace.clock_step_s = wall() - clock() - offset


def rest(duration_s: float, read: Callable[[], Reading] | None = None) -> SensorTrace | None:
    """Watch the machine at rest.

    Args:
        duration_s: Seconds, cut to ten.
        read: As for `watch`.

    Returns:
        The trace, None where no sensor reports power.
    """
    first = read_board() if read is None else read()
    if not first.energy_uj and first.total_mw() is None:
        return None
    with watch(read, period_s=_REST_PERIOD_S) as idle:
        time.sleep(min(_REST_S, duration_s))
    return idle


def summarize_trace(trace: SensorTrace) -> TraceSummary:
    """The range of every sensor over a trace.

    Args:
        trace: Any number of readings.
    """
    readings = trace.readings
    return TraceSummary(
        clock_mhz=_spans([r.clock_mhz for r in readings]),
        temperature_c=_spans([r.temperature_c for r in readings]),
        power_mw=_spans([r.power_mw for r in readings]),
        load_percent=_spans([r.load_percent for r in readings]),
        memory_mb=_spans([r.memory_mb for r in readings]),
        fan=_spans([r.fan for r in readings]),
        throttled=_throttled(trace),
        power_mode=tuple(dict.fromkeys(trace.power_modes)),
    )


def anomalies(trace: SensorTrace, warmup_s: float = 0.0) -> list[str]:
    """Why the machine spoiled a run: it throttled, its clocks moved, the wall clock jumped.

    Args:
        trace: The machine during the run; its first and last reading are taken at rest.
        warmup_s: Seconds at the begin in which clocks may move.

    Returns:
        One sentence for each reason.
    """
    reasons = [f"throttled: {why}" for why in _throttled(trace)]
    reasons += [f"throttled: {why} {n} times" for why, n in trace.throttles.items() if n > 0]
    if abs(trace.clock_step_s) > MAX_CLOCK_STEP_S:
        reasons.append(
            f"the clock jumped: it was set, or the machine slept, {trace.clock_step_s:+.1f} s"
        )
    if len(set(trace.power_modes)) > 1:
        reasons.append(f"the power mode changed: {' to '.join(trace.power_modes)}")
    inner = zip(trace.times[1:-1], trace.readings[1:-1], strict=True)
    running = [r.clock_mhz for at, r in inner if at - trace.times[0] > warmup_s]
    for name, (low, high) in _spans(running).items():
        if low < (1 - MAX_CLOCK_DROP) * high:
            reasons.append(f"clocks moved: {name} between {low:.0f} and {high:.0f} MHz")
    return reasons


def _read_all(cards: NvidiaCards, tegrastats: Tegrastats) -> Reading:
    kernel, card = read_sysfs(), cards.read()
    if not kernel.power_mw and not card.power_mw:
        tool = tegrastats.read()
        kernel = replace(
            kernel,
            power_mw=tool.power_mw,
            clock_mhz={**tool.clock_mhz, **kernel.clock_mhz},
            load_percent={**tool.load_percent, **kernel.load_percent},
        )
    return replace(
        kernel,
        power_mw={**kernel.power_mw, **card.power_mw},
        temperature_c={**kernel.temperature_c, **card.temperature_c},
        clock_mhz={**kernel.clock_mhz, **card.clock_mhz},
        memory_mb={**kernel.memory_mb, **card.memory_mb},
        throttled=kernel.throttled + card.throttled,
    )


def _throttled(trace: SensorTrace) -> tuple[str, ...]:
    return tuple(sorted({why for reading in trace.readings for why in reading.throttled}))


def _spans(rows: Sequence[Mapping[str, float]]) -> dict[str, Span]:
    names = sorted({name for row in rows for name in row})
    return {
        name: (min(values), max(values))
        for name in names
        for values in [[row[name] for row in rows if name in row]]
    }
