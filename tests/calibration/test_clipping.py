"""Histograms predict the error of INT8; ranges are those of other tools with the same methods."""

import numpy as np
import pytest

from fr_edge.calibration.clipping import (
    METHODS,
    abs_histogram,
    cumulative_moments,
    min_error_amax,
    pool_channels,
    quantization_error,
)
from fr_edge.calibration.constants import CLIPPING_WEIGHT
from fr_edge.calibration.histogram import add_values, channel_midpoints, empty_histogram

# Share of the range: channels are pooled from their own bins, others' histograms have one width.
TOLERANCE = 0.02


def sample(channels: int = 5) -> np.ndarray:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((40, channels, 30, 30)) * np.linspace(0.5, 4, channels)[:, None, None]
    return np.where(x > 0, x, 0.1 * x).astype(np.float32)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_errors_are_those_of_rounding_and_clipping(share: float, shifted: bool) -> None:
    x = sample()
    histogram = add_values(empty_histogram(5), x)
    shift = channel_midpoints(histogram) if shifted else np.zeros(5)
    magnitudes = abs_histogram(histogram, shift)
    y = (x - shift.reshape(-1, 1, 1)).astype(np.float64)
    amax = magnitudes.peak * share
    limit = amax.reshape(-1, 1, 1)
    clipped = np.clip(y, -limit, limit)
    step = limit / 127
    rounded = np.rint(clipped / step) * step
    expected = ((rounded - clipped) ** 2).mean(axis=(0, 2, 3))
    expected += CLIPPING_WEIGHT * ((clipped - y) ** 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(
        quantization_error(magnitudes, cumulative_moments(magnitudes), amax),
        expected,
        rtol=0.15,
        atol=1e-9,
    )
    np.testing.assert_allclose(magnitudes.peak, np.abs(y).max(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(magnitudes.variance, y.var(axis=(0, 2, 3)), rtol=0.01)


def test_faint_channels_cost_their_own_square_at_most() -> None:
    magnitudes = abs_histogram(
        add_values(empty_histogram(1), np.full((1, 1, 2, 2), 0.01, np.float32)), np.zeros(1)
    )
    assert quantization_error(magnitudes, cumulative_moments(magnitudes), np.array([100.0]))[
        0
    ] == pytest.approx(1e-4, rel=0.02)


def test_best_amax_beats_its_neighbours() -> None:
    x = sample()
    magnitudes = abs_histogram(add_values(empty_histogram(5), x), np.zeros(5))
    scale, gain, sums = np.linspace(1, 2, 5), np.linspace(3, 1, 5), cumulative_moments(magnitudes)
    amax, min_error = min_error_amax(magnitudes, sums, scale, gain)
    for other in (0.7 * amax, 1.4 * amax):
        assert gain @ quantization_error(magnitudes, sums, scale * other) >= min_error


def test_pooled_channels_are_one_histogram() -> None:
    x, scale = sample(), np.linspace(0.5, 2, 5)
    counts, width = pool_channels(
        abs_histogram(add_values(empty_histogram(5), x), np.zeros(5)), scale
    )
    y = np.abs(x / scale.reshape(-1, 1, 1))
    assert counts.sum() == pytest.approx(x.size)
    assert len(counts) * width == pytest.approx(y.max())
    for share in (0.5, 0.9, 0.999):
        amax = (np.searchsorted(counts.cumsum() / x.size, share) + 1) * width
        assert amax == pytest.approx(np.quantile(y, share), abs=0.005 * y.max())


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    normal = rng.standard_normal((20, 6, 40, 40))
    return {
        "normal": normal,
        "heavy": rng.standard_t(4, (20, 6, 40, 40)),
        "relu": np.maximum(normal, 0) + 0.0,
        "prelu": np.where(normal > 0, normal, 0.25 * normal)
        * np.exp(rng.normal(0, 0.7, (6, 1, 1))),
    }


def histogram(x: np.ndarray) -> tuple[np.ndarray, float]:
    counted = add_values(empty_histogram(x.shape[1]), x.astype(np.float32))
    return pool_channels(abs_histogram(counted, np.zeros(x.shape[1])), np.ones(x.shape[1]))


@pytest.mark.parametrize("name", samples())
def test_percentile_and_minmax(name: str) -> None:
    x = np.abs(samples()[name])
    assert METHODS["minmax"](*histogram(x)) == pytest.approx(x.max(), rel=1e-6)
    assert METHODS["percentile"](*histogram(x)) == pytest.approx(
        np.quantile(x, 0.9999), abs=TOLERANCE * x.max()
    )


@pytest.mark.parametrize("name", samples())
def test_mse_is_the_least_squared_error(name: str) -> None:
    x = np.abs(samples()[name])

    def cost(amax: float) -> float:
        step = amax / 127
        return float(np.square(np.clip(np.rint(x / step), 0, 127) * step - x).mean())

    amax = METHODS["mse"](*histogram(x))
    best = min(cost(x.max() * share) for share in np.linspace(0.1, 1, 91))
    assert cost(amax) <= 1.05 * best


@pytest.mark.parametrize("name", samples())
def test_entropy_is_onnxruntimes(name: str) -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    x = samples()[name].astype(np.float32)
    peak = float(np.abs(x).max())
    both_sides = np.concatenate([x.ravel(), -x.ravel()])
    counts, edges = np.histogram(both_sides, 2048, (-peak, peak))
    collector = HistogramCollector("entropy", True, 2048, 128, 99.99, "t")
    limits = collector.get_entropy_threshold((counts, edges, -peak, peak, peak), 128)
    # Their own answer moves by as much with the number of bins.
    assert METHODS["entropy"](*histogram(x)) == pytest.approx(float(limits[1]), rel=0.15)


@pytest.mark.parametrize("name", samples())
def test_zeros_do_not_move_the_entropy_range(name: str) -> None:
    counts, width = histogram(samples()[name])
    spike = counts.copy()
    spike[0] *= 1000
    assert METHODS["entropy"](spike, width) == METHODS["entropy"](counts, width)


@pytest.mark.parametrize("method", METHODS)
def test_every_amax_is_within_the_values(method: str) -> None:
    for x in samples().values():
        assert 0 < METHODS[method](*histogram(x)) <= np.abs(x).max() * (1 + 1e-6)


def test_a_silent_channel_changes_nothing() -> None:
    """Its bins are so narrow that the range in bins is beyond int64: x86 wraps, aarch64 saturates."""
    x = sample()
    x[:, 2] = 0.0
    magnitudes = abs_histogram(add_values(empty_histogram(5), x), np.zeros(5))
    moments = cumulative_moments(magnitudes)
    amax = np.full(5, float(np.abs(x).max()) * 0.7)
    error = quantization_error(magnitudes, moments, amax)
    assert error[2] < 1e-30
    others = [0, 1, 3, 4]
    alone = abs_histogram(add_values(empty_histogram(4), x[:, others]), np.zeros(4))
    expected = quantization_error(alone, cumulative_moments(alone), amax[others])
    np.testing.assert_array_equal(error[others], expected)
    gain = np.array([1.0, 1.0, 5.0, 1.0, 1.0])
    with_silent = min_error_amax(magnitudes, moments, np.ones(5), gain)
    without = min_error_amax(alone, cumulative_moments(alone), np.ones(4), gain[others])
    assert with_silent[0] == pytest.approx(without[0], rel=1e-6)
