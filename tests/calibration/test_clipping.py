"""The error that INT8 makes is foreseen from histograms."""

import numpy as np
import pytest

from fr_edge.calibration.clipping import (
    CLIPPING_WEIGHT,
    abs_histogram,
    cumulative_moments,
    min_error_amax,
    pool_channels,
    quantization_error,
)
from fr_edge.calibration.histogram import add_values, channel_midpoints, empty_histogram


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
    of = abs_histogram(histogram, shift)
    y = (x - shift.reshape(-1, 1, 1)).astype(np.float64)
    amax = of.peak * share
    limit = amax.reshape(-1, 1, 1)
    clipped = np.clip(y, -limit, limit)
    step = limit / 127
    rounded = np.rint(clipped / step) * step
    expected = ((rounded - clipped) ** 2).mean(axis=(0, 2, 3))
    expected += CLIPPING_WEIGHT * ((clipped - y) ** 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(
        quantization_error(of, cumulative_moments(of), amax), expected, rtol=0.15, atol=1e-9
    )
    np.testing.assert_allclose(of.peak, np.abs(y).max(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(of.variance, y.var(axis=(0, 2, 3)), rtol=0.01)


def test_faint_channels_cost_their_own_square_at_most() -> None:
    of = abs_histogram(
        add_values(empty_histogram(1), np.full((1, 1, 2, 2), 0.01, np.float32)), np.zeros(1)
    )
    assert quantization_error(of, cumulative_moments(of), np.array([100.0]))[0] == pytest.approx(
        1e-4, rel=0.02
    )


def test_best_amax_beats_its_neighbours() -> None:
    x = sample()
    of = abs_histogram(add_values(empty_histogram(5), x), np.zeros(5))
    scale, gain, sums = np.linspace(1, 2, 5), np.linspace(3, 1, 5), cumulative_moments(of)
    amax, least = min_error_amax(of, sums, scale, gain)
    for other in (0.7 * amax, 1.4 * amax):
        assert gain @ quantization_error(of, sums, scale * other) >= least


def test_pooled_channels_are_one_histogram() -> None:
    x, scale = sample(), np.linspace(0.5, 2, 5)
    counts, width = pool_channels(
        abs_histogram(add_values(empty_histogram(5), x), np.zeros(5)), scale
    )
    y = np.abs(x / scale.reshape(-1, 1, 1))
    assert counts.sum() == pytest.approx(x.size)
    assert len(counts) * width == pytest.approx(y.max())
    for share in (0.5, 0.9, 0.999):
        found = (np.searchsorted(counts.cumsum() / x.size, share) + 1) * width
        assert found == pytest.approx(np.quantile(y, share), abs=0.005 * y.max())
