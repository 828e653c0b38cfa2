"""The methods that others have too give what theirs give."""

import numpy as np
import pytest

from fr_edge.calibration.clipping import (
    METHODS,
    abs_histogram,
    pool_channels,
)
from fr_edge.calibration.histogram import add_values, empty_histogram

TOLERANCE = 0.02
"""Of the range: channels are pooled from their own bins, others' histograms have one width."""


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

    found = METHODS["mse"](*histogram(x))
    best = min(cost(x.max() * share) for share in np.linspace(0.1, 1, 91))
    assert cost(found) <= 1.05 * best


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
def test_entropy_looks_away_from_zeros(name: str) -> None:
    counts, width = histogram(samples()[name])
    spike = counts.copy()
    spike[0] *= 1000
    assert METHODS["entropy"](spike, width) == METHODS["entropy"](counts, width)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_leaves_what_was_seen(method: str) -> None:
    for x in samples().values():
        assert 0 < METHODS[method](*histogram(x)) <= np.abs(x).max() * (1 + 1e-6)
