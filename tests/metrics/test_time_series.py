"""Intervals of series with a memory hold the truth; ones as if values were independent do not."""

from collections.abc import Callable

import numpy as np
import pytest

from fr_edge.metrics.time_series import make_series, mean_interval, quantile_interval

TRIALS = 150
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _wandering(random: np.random.Generator, count: int, memory: float = 0.8) -> np.ndarray:
    """Autocorrelated noise, of unit deviation."""
    steps = np.sqrt(1 - memory**2) * random.standard_normal((count, TRIALS))
    values = np.empty((count, TRIALS))
    last = random.standard_normal(TRIALS)
    for index, step in enumerate(steps):
        last = values[index] = memory * last + step
    return values.T


def independent(random: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(0.1 * random.standard_normal((TRIALS, count)))


def autocorrelated(random: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(0.1 * _wandering(random, count))


def heavy(random: np.random.Generator, count: int) -> np.ndarray:
    """Pareto's tail, index 4.5."""
    return 1 + random.pareto(4.5, (TRIALS, count))


def _naive_mean(values: np.ndarray) -> tuple[float, float]:
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def _naive_quantile(values: np.ndarray, share: float) -> tuple[float, float]:
    ordered, count = np.sort(values), len(values)
    reach = 1.96 * (count * share * (1 - share)) ** 0.5
    low, high = int(count * share - reach), int(np.ceil(count * share + reach))
    return float(ordered[max(0, low)]), float(ordered[min(count - 1, high)])


def _coverage(
    draw: Draw, count: int, truth: float, ends: Callable[[np.ndarray], tuple[float, float] | None]
) -> tuple[float, float]:
    """Share of the stated intervals that hold the truth, and share that is stated."""
    rows = draw(np.random.default_rng(0), count)
    known = [interval for row in rows if (interval := ends(row)) is not None]
    held = sum(low <= truth <= high for low, high in known)
    return held / max(1, len(known)), len(known) / len(rows)


@pytest.mark.parametrize("draw", [independent, autocorrelated])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles(draw: Draw, share: float) -> None:
    """All three kinds have the same distribution, and so the same quantiles."""
    z = {0.5: 0.0, 0.9: 1.2815516, 0.99: 2.3263479}[share]  # of the normal distribution
    truth, count = float(np.exp(0.1 * z)), 2000

    def ends(row: np.ndarray) -> tuple[float, float] | None:
        return quantile_interval(make_series(row), share)

    held, stated = _coverage(draw, count, truth, ends)
    # 150 trials at 93 to 98 %: two standard errors below and above.
    if stated > 0.3:
        assert 0.89 <= held <= 1.0
    assert stated > (0.95 if draw is independent else 0.7 if share < 0.99 else -1)
    if draw is autocorrelated and share < 0.99:
        naive, _ = _coverage(draw, count, truth, lambda row: _naive_quantile(row, share))
        assert naive < 0.8


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(independent, np.exp(0.005)), (autocorrelated, np.exp(0.005)), (heavy, 1 + 1 / 3.5)],
)
def test_means(draw: Draw, truth: float) -> None:
    held, stated = _coverage(draw, 2000, truth, lambda row: mean_interval(make_series(row)))
    assert 0.89 <= held <= 1.0
    assert stated > (0.3 if draw is heavy else 0.7)
    if draw is autocorrelated:
        assert _coverage(draw, 2000, truth, _naive_mean)[0] < 0.8


def test_a_series_that_drifts_or_is_too_short_for_its_memory_has_no_interval() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal(1000)
    slow = _wandering(random, 400, 0.99)
    for values in (noise + np.linspace(0, 2, 1000), np.cumsum(noise), *slow[:20]):
        series = make_series(values)
        assert mean_interval(series) is None
        assert quantile_interval(series, 0.5) is None
    assert mean_interval(make_series(noise[:31])) is None
    assert mean_interval(make_series(noise)) is not None


def test_a_tail_without_a_variance_has_no_interval_of_its_mean() -> None:
    random = np.random.default_rng(0)
    stated = [mean_interval(make_series(1 + random.pareto(1.5, 2000))) for _ in range(50)]
    assert sum(ends is not None for ends in stated) == 0


def test_constant_values_are_known_exactly() -> None:
    series = make_series(np.full(100, 7.0))
    assert mean_interval(series) == (7.0, 7.0)
    assert quantile_interval(series, 0.5) == (7.0, 7.0)
    assert mean_interval(make_series([1.0])) is None
    assert quantile_interval(make_series([1.0, 2.0]), 0.5) is None


def test_what_theory_knows_of_the_memory_is_used() -> None:
    values = np.random.default_rng(0).standard_normal(3000)
    plain, queue = make_series(values), make_series(values, memory=40.0)
    assert (plain.batch_size, queue.batch_size) == (1, 40)
    assert make_series(values, memory=float("inf")).batch_size is None
    assert make_series(values, memory=200.0).batch_size is None


def test_a_weak_memory_that_lasts_is_seen() -> None:
    """A tenth of the variance is remembered by 20 values: neighbours alone hardly show it."""
    random = np.random.default_rng(0)
    lasting = np.sqrt(0.1) * _wandering(random, 400, 0.95)[:60]
    rows = lasting + np.sqrt(0.9) * random.standard_normal(lasting.shape)
    unseen = sum(make_series(row).batch_size == 1 for row in rows)
    assert unseen <= 15  # without sums over 16 values: 27


def test_a_few_large_values_in_the_memory_leave_no_interval_of_the_mean() -> None:
    rows = np.exp(_wandering(np.random.default_rng(0), 1600))[:40]
    assert sum(mean_interval(make_series(row)) is not None for row in rows) == 0


def test_a_quantile_that_bursts_decide_has_no_interval() -> None:
    """A neighbour for 40 of 440 runs: just about a tenth of the time, if it comes often enough."""
    random = np.random.default_rng(0)
    stated = 0
    for _ in range(40):
        busy = np.zeros(3200, bool)
        at = int(random.exponential(400))
        while at < len(busy):
            busy[at : (at := at + int(random.exponential(40)))] = True
            at += int(random.exponential(400))
        series = make_series(np.exp(0.05 * random.standard_normal(3200)) * (1 + 0.3 * busy))
        stated += quantile_interval(series, 0.9) is not None
    assert stated <= 12  # else 23


def test_a_memory_that_theory_knows_asks_for_half_as_many_again() -> None:
    values = np.random.default_rng(0).standard_normal(26_000)
    assert quantile_interval(make_series(values[:18_000], memory=40.0), 0.99) is None  # 450
    assert quantile_interval(make_series(values, memory=40.0), 0.99) is not None  # 650
