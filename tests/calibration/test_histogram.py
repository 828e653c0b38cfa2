"""Histograms count what came, however it came."""

import numpy as np
import pytest

from fr_edge.calibration import constants
from fr_edge.calibration.constants import HALF_BINS
from fr_edge.calibration.histogram import (
    Histogram,
    add_values,
    channel_midpoints,
    empty_histogram,
)


def values(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loud = np.exp(rng.normal(0, 2, shape[1])).reshape(-1, *[1] * (len(shape) - 2))
    return (rng.standard_normal(shape) * loud + 0.3).astype(np.float32)


def same(first: Histogram, second: Histogram) -> None:
    assert (first.counts == second.counts).all()
    assert (first.exponent == second.exponent).all()
    assert (first.low == second.low).all()
    assert (first.high == second.high).all()
    np.testing.assert_allclose(first.total, second.total, rtol=1e-9)


@pytest.mark.parametrize("shape", [(1, 3, 7, 5), (5, 1, 1, 1), (3, 17), (2, 4, 9)])
def test_every_value_is_in_its_bin(shape: tuple[int, ...]) -> None:
    x = values(1, *shape)
    counted = add_values(empty_histogram(shape[1]), x)
    for channel in range(shape[1]):
        edges = np.arange(-HALF_BINS, HALF_BINS + 1) * counted.width[channel]
        expected = np.histogram(x[:, channel].astype(np.float64), edges)[0]
        assert (counted.counts[channel] == expected).all()
    flat = np.moveaxis(x, 1, 0).reshape(shape[1], -1)
    np.testing.assert_allclose(counted.mean, flat.mean(axis=1), rtol=1e-5)
    assert (counted.low == np.minimum(flat.min(axis=1), 0)).all()
    assert (counted.high == np.maximum(flat.max(axis=1), 0)).all()
    # The bins are no wider than they must be.
    assert (np.maximum(counted.high, -counted.low) >= HALF_BINS / 2 * counted.width).all()


def test_the_counts_do_not_depend_on_batches_and_their_order() -> None:
    """Also where the second batch is a thousand times as loud."""
    first, second = values(2, 6, 11, 4, 4), 1000 * values(3, 3, 11, 4, 4)
    whole = add_values(add_values(empty_histogram(11), first), second)
    same(add_values(add_values(empty_histogram(11), second), first), whole)
    same(add_values(empty_histogram(11), np.concatenate([first, second])), whole)


@pytest.mark.parametrize("channels", [1, 2, 11, 100])
def test_blocks_of_any_size(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second set is louder in some channels only."""
    first, second = values(5, 4, channels, 3, 5), values(6, 2, channels, 3, 5)
    whole = add_values(add_values(empty_histogram(channels), first), second)
    monkeypatch.setattr(constants, "BLOCK_VALUES", 70)
    same(add_values(add_values(empty_histogram(channels), first), second), whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_finite_values(bad: float) -> None:
    x = values(7, 2, 3, 4, 4)
    x[1, 2, 3, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        add_values(empty_histogram(3), x)


def test_zeros_alone_take_no_range() -> None:
    counted = add_values(empty_histogram(2), np.zeros((4, 2, 3, 3), np.float32))
    assert counted.counts.sum() == 72
    assert (counted.high == 0).all()
    grown = add_values(counted, np.full((1, 2, 1, 1), 5.0, np.float32))
    assert grown.counts[0].sum() == 37
    assert grown.counts[0, HALF_BINS] == 36


def test_the_middle_is_a_whole_number_of_bins() -> None:
    counted = add_values(empty_histogram(4), values(4, 8, 4, 6, 6))
    midpoints = channel_midpoints(counted)
    assert (np.abs(midpoints - (counted.low + counted.high) / 2) <= counted.width / 2).all()
    assert (midpoints / counted.width == np.rint(midpoints / counted.width)).all()
